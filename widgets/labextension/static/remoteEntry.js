/**
 * JupyterLab without a model: the widget renderer says "Error displaying widget: model not found", though the
 * output holds a form in text/html that needs none. This shows that form. It is a prebuilt extension, written
 * as JupyterLab loads it, with no build and nothing imported.
 */
(() => {
  const WIDGET = "application/vnd.jupyter.widget-view+json";
  const STILL = "text/html";
  const LOST = "Error displaying widget";

  /** Let a notebook's renderers of widgets fall back. @param {any} rendermime */
  function mend(rendermime) {
    const make = rendermime.createRenderer.bind(rendermime);
    rendermime.createRenderer = (/** @type {string} */ mimeType) => {
      const renderer = make(mimeType);
      if (mimeType === WIDGET) fallBack(renderer, () => make(STILL));
      return renderer;
    };
  }

  /** @param {any} renderer of one output @param {() => any} makeStill */
  function fallBack(renderer, makeStill) {
    const render = renderer.renderModel.bind(renderer);
    renderer.renderModel = async (/** @type {any} */ model) => {
      await render(model);
      const lost = !renderer.isDisposed && renderer.node.textContent.startsWith(LOST);
      if (!lost || !model.data[STILL]) return;
      const still = makeStill();
      await still.renderModel(model);
      if (renderer.isDisposed) return;
      renderer.node.textContent = "";
      renderer.removeClass("jupyter-widgets");
      renderer.addWidget(still);
    };
  }

  const plugin = {
    id: "saelab:still",
    description: "Shows a view as it stood, where its kernel is gone",
    autoStart: true,
    activate: (/** @type {any} */ app) =>
      app.docRegistry.addWidgetExtension("Notebook", {
        createNew: (/** @type {any} */ panel) => mend(panel.content.rendermime),
      }),
  };
  const page = /** @type {any} */ (window);
  page._JUPYTERLAB = page._JUPYTERLAB ?? {};
  page._JUPYTERLAB.saelab = { init: () => {}, get: async () => () => plugin };
})();

/** Whether a view stands on a dark page. */

/**
 * Whether the page around a view says that it is dark: marimo and exported pages, VS Code, Colab. A style
 * sheet cannot ask them, since some put a view into a shadow root. JupyterLab's colours come as variables.
 */
export function saidDark() {
  const [page, body] = [document.documentElement, document.body];
  const code = body.dataset.vscodeThemeKind ?? "";
  return (
    [page.dataset.theme, body.dataset.theme, page.getAttribute("theme")].includes("dark") ||
    code === "vscode-dark" ||
    code === "vscode-high-contrast"
  );
}

/** Whether an element is dark: for pictures, which no style sheet colours. @param {Element} element */
export function isDark(element) {
  const [r, g, b] = getComputedStyle(element)
    .backgroundColor.match(/\d+(\.\d+)?/g)
    ?.map(Number) ?? [255, 255, 255];
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 110;
}

/**
 * Call whenever the page may have become dark or light.
 * @param {() => void} listener @returns {() => void} undoes it
 */
export function watchTheme(listener) {
  const scheme = globalThis.matchMedia?.("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(listener);
  const attributeFilter = ["data-jp-theme-light", "data-theme", "theme", "data-vscode-theme-kind", "class"];
  const options = { attributes: true, attributeFilter };
  for (const element of [document.documentElement, document.body]) observer.observe(element, options);
  scheme?.addEventListener("change", listener);
  return () => {
    observer.disconnect();
    scheme?.removeEventListener("change", listener);
  };
}

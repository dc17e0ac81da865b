/** Whether a view stands on a dark page: for pictures, which no style sheet colours. */

/** @param {Element} element */
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
  const options = { attributes: true, attributeFilter: ["data-jp-theme-light", "data-theme", "class"] };
  for (const element of [document.documentElement, document.body]) observer.observe(element, options);
  scheme?.addEventListener("change", listener);
  return () => {
    observer.disconnect();
    scheme?.removeEventListener("change", listener);
  };
}

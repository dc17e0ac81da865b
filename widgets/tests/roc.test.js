// @vitest-environment jsdom
import { expect, test } from "vitest";
import { rocElement } from "../shared/roc.js";

const curve = (more = {}) => ({
  ...{ threshold: [4, 2, 1, 0.5], clean: [0, 0, 0.25, 1], target: [0, 0.5, 1, 1], n: [8, 4] },
  ...{ chosen: 2, met: true, max_clean: 0.05, min_target: 0.9, auroc: [0.95, 0.9, 1] },
  held_out: { clean: [0, 0, 0.3, 8], target: [0.75, 0.4, 0.9, 4] },
  ...more,
});
const shown = (given, how = {}) => {
  const chosen = [];
  const change = (threshold) => chosen.push(threshold);
  const element = rocElement(given, { ...{ threshold: null, live: true, name: "<b>law" }, change, ...how });
  return { element, chosen, range: element.querySelector("input") };
};

test("a slider moves along the curve, and says what the gate does there", () => {
  const { element, chosen, range } = shown(curve());
  expect(range.value).toBe("1");
  const said = () => element.querySelector(".sl-roc-said").textContent;
  expect(said()).toBe(
    "threshold 2.00: opens on 0 % of 8 clean, 50.0 % of 4 target inputs of the calibration part",
  );
  expect(element.textContent).toContain("AUROC 0.950 [0.900, 1.00]");
  expect(element.textContent).toContain("clean 0 % [0 %, 30.0 %] of 8, target 75.0 % [40.0 %, 90.0 %] of 4");
  range.value = "2";
  range.dispatchEvent(new Event("input"));
  expect(chosen).toEqual([1]);
  expect(said()).toContain("25.0 % of 8 clean, 100.0 % of 4 target");
  expect(range.getAttribute("aria-valuetext")).toBe(said());
  expect(element.querySelector("svg").getAttribute("aria-label")).toBe(`ROC of <b>law: ${said()}`);
  expect(element.querySelector("b")).toBe(null);
  // the circle lies on the line
  const path = element.querySelector("[data-line]").getAttribute("d");
  const { cx, cy } = element.querySelector("circle").attributes;
  expect(path).toContain(`H${Number(cx.value).toFixed(1)}V${Number(cy.value).toFixed(1)}`);
});
test("another threshold is shown where it was set, and what cannot be kept is said", () => {
  const unmet = curve({ met: false, auroc: [null, null, null] });
  unmet.held_out.target = [null, null, null, 0];
  const { element, range } = shown(unmet, { threshold: 0.6, live: false });
  expect([range.value, range.disabled]).toEqual(["3", true]);
  expect(element.textContent).toContain("no threshold keeps 5.0 % of clean, 90.0 % of target inputs");
  expect(element.textContent).toContain("AUROC – [–, –]");
  expect(element.textContent).toContain("target – [–, –] of 0");
  expect(element.innerHTML).not.toContain("NaN");
});

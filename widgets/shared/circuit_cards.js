/**
 * Cards of latents of several SAEs in one view: the questions of all but the first have a number before them.
 * @typedef {import("../types.js").View} View
 */

/** The view as the cards of one SAE see it. @param {View} view @param {number} sae @returns {View} */
export function sideOf(view, sae) {
  if (sae === 0) return view;
  return {
    ...view,
    ask: (question, args) => view.ask(`${sae}_${question}`, args),
    request: (question, args) => view.request(`${sae}_${question}`, args),
    holds: (question) => view.holds(`${sae}_${question}`),
    edited: () => undefined,
    choose: ({ latent, ...others }) => {
      if (latent !== undefined && view.live) view.ask("choose", { sae, latent });
      if (Object.keys(others).length) view.choose(others);
    },
  };
}

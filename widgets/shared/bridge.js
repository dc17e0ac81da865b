/**
 * How a view asks the kernel. An exported page has another side (shelves.js); a view does not know which one
 * it has.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").Bridge} Bridge
 * @typedef {import("../types.js").Model} Model
 */
import { decode, keyOf } from "./answers.js";

export const SLOW_MS = 2500;
export const SILENT_MS = 12000;
/** An answer and a reply to the kernel's own protocol come by two ways: the one may be late by so much. */
export const GRACE_MS = 2000;
const TICK_MS = 500;
const GONE = ["dead", "restarting", "autorestarting", "terminating"];
const DEAD =
  "The kernel does not answer this view any more, as after a restart. Run the cell again; what is shown " +
  "stays readable.";
const BUSY = "The kernel is busy with another cell; this goes on when it is free.";
const SLOW = "Waiting for the kernel…";
const SILENT =
  "Still waiting for the kernel: it is busy, or was restarted; then run the cell again. What is shown here " +
  "stays readable.";

/**
 * Ask the kernel: `{id, ask, args}` goes out, `{id, ok}` with buffers or `{id, error}` comes back;
 * questions of one kind that are asked at once go out as one message, and come back in few: each message
 * takes a host some milliseconds. What came along with the view is not asked for. Silence alone proves
 * nothing: a kernel under load may tell that it is idle, and some hosts tell no status. So an answer is
 * waited for, however late, until the kernel is known to be gone, or replies to a question of its own
 * protocol that was sent after this one: it takes them in order, so that it has passed over ours.
 * @param {Model} model
 * @param {(message: string) => void} say shows a banner; "" takes it away
 * @returns {Bridge}
 */
export function kernelBridge(model, say) {
  const opening = model.get("opening") ?? {};
  const watched = model.widget_manager?.kernel;
  const waiting = waitingRoom(() => model.widget_manager?.kernel, say);
  let next = 0;
  /** @type {{id: number, ask: string, args: Args}[]} not sent yet */
  let outgoing = [];

  /** @param {any} message @param {DataView[]} buffers */
  const receive = (message, buffers) => {
    let at = 0;
    for (const answer of message.answers ?? [message]) {
      const from = at;
      at += answer.ok?.fields?.length ?? 0;
      const asked = waiting.leave(answer.id);
      if (!asked) continue;
      say("");
      if (answer.error) asked.reject(new Error(answer.error));
      else settle(asked, { header: answer.ok, buffers: message.answers ? buffers.slice(from, at) : buffers });
    }
  };
  model.on("msg:custom", receive);

  /** Send what was asked since the last time, in its order. */
  const send = () => {
    const all = outgoing;
    outgoing = [];
    for (let from = 0, to = 0; from < all.length; from = to) {
      const { ask } = all[from];
      while (to < all.length && all[to].ask === ask) to++;
      const many = all.slice(from, to);
      try {
        if (many.length === 1) model.send(many[0]);
        else model.send({ ask, many: many.map(({ id, args }) => ({ id, args })) });
      } catch {
        // the way to the kernel is closed
        for (const { id } of many) waiting.leave(id)?.reject(new Error(DEAD));
      }
    }
  };

  /** @param {any} _ @param {string} status */
  const watch = (_, status) => {
    if (GONE.includes(status)) say(DEAD);
  };
  watched?.statusChanged?.connect(watch);

  return {
    live: true,
    // of a front end that lets a view do what its own ■ does
    interrupt: watched?.interrupt ? () => watched.interrupt() : undefined,
    ask(question, args = {}) {
      return new Promise((resolve, reject) => {
        const along = opening[keyOf(question, args)];
        if (along) {
          settle({ resolve, reject }, along);
          return;
        }
        const id = next++;
        waiting.enter(id, { resolve, reject });
        outgoing.push({ id, ask: question, args });
        if (outgoing.length === 1) queueMicrotask(send);
      });
    },
    close() {
      model.off("msg:custom", receive);
      watched?.statusChanged?.disconnect(watch);
      waiting.close();
    },
  };
}

/**
 * @typedef {{resolve: (a: Answer) => void, reject: (e: unknown) => void}} Asked
 * @param {Asked} asked @param {import("../types.js").Sent} sent
 */
function settle(asked, sent) {
  try {
    asked.resolve(decode(sent));
  } catch (error) {
    asked.reject(error);
  }
}

/**
 * Questions that wait for an answer, and clocks that say so.
 * @param {() => any} kernel undefined where the host tells of none @param {(message: string) => void} say
 */
function waitingRoom(kernel, say) {
  /** @type {Map<number, Asked & {clock: any}>} */
  const waiting = new Map();

  /** @param {number} id */
  function leave(id) {
    const asked = waiting.get(id);
    clearInterval(asked?.clock);
    waiting.delete(id);
    return asked;
  }

  /** @param {number} id @param {Asked} asked */
  function enter(id, asked) {
    let [total, silent] = [0, 0];
    const giveUp = () => {
      if (!leave(id)) return;
      say(DEAD);
      asked.reject(new Error(DEAD));
    };
    const tick = () => {
      const busy = kernel()?.status === "busy";
      total += TICK_MS;
      silent = busy ? 0 : silent + TICK_MS;
      if (silent === SILENT_MS)
        kernel()
          ?.requestKernelInfo?.()
          .then(
            () => setTimeout(giveUp, GRACE_MS),
            () => {},
          );
      if (total >= SLOW_MS) say(busy ? BUSY : silent >= SILENT_MS ? SILENT : SLOW);
    };
    waiting.set(id, { ...asked, clock: setInterval(tick, TICK_MS) });
  }

  return { enter, leave, close: () => [...waiting.keys()].forEach(leave) };
}

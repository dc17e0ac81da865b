/** What a question is answered with. */
export interface Answer {
  /** JSON */
  header: any;
  /** by name: typed arrays, or what JSON a field holds */
  fields: Record<string, any>;
}

/** An answer as it is sent: its header describes one field a buffer. */
export interface Sent {
  header: any;
  buffers: (DataView | ArrayBuffer | Uint8Array)[];
}

export interface Bridge {
  /** whether a kernel answers */
  live: boolean;
  /** interrupt the kernel; absent where the front end does not let a view */
  interrupt?: () => Promise<void>;
  ask(question: string, args?: Args): Promise<Answer>;
  /** of a page: whether it has answers to such a question; a kernel answers all */
  holds?(question: string): boolean;
  close(): void;
}

export type Args = Record<string, number | string | number[]>;

/** What can be chosen; the views of a selection share it. */
export type Choice = "sae" | "latent" | "row" | "document" | "latents" | "list";

/** The part of anywidget's model that views use; exported pages have one of their own, with a bridge. */
export interface Model {
  bridge?: Bridge;
  /** of the notebook; absent in exported pages, and its kernel in some front ends */
  widget_manager?: { kernel?: any };
  get(name: string): any;
  set(name: string, value: any): void;
  save_changes(): void;
  send(message: any): void;
  on(event: string, listener: (...args: any[]) => void): void;
  off(event: string, listener: (...args: any[]) => void): void;
}

/** Neighbouring positions of one kind: see `saelab.layout.Part`. */
export interface Part {
  kind: string;
  n: number;
  /** of a grid: patches in a row */
  width: number;
  /** where they begin in their segment */
  at: number;
  /** positions of the whole segment */
  of: number;
}

/** The picture of a document, by its number. */
export type Pictures = (document: number) => Promise<Uint8Array>;

export interface View {
  /** where it draws */
  body: HTMLElement;
  /** whether a kernel answers */
  live: boolean;
  /** interrupt the kernel, as the notebook's own button does; absent where a view may not */
  interrupt?: () => Promise<void>;
  /** show a message above the view; "" takes it away */
  say(message: string): void;
  /** an option of the view: a synchronised trait of its Python class */
  option(name: string): any;
  /** call whenever an option was changed in Python */
  changed(name: string, listener: () => void): void;
  /** what is chosen of a kind; null for nothing, and for what the view does not follow */
  chosen(what: Choice): any;
  choose(choices: Partial<Record<Choice, any>>): void;
  /** back (-1) or forward (1) in what was chosen */
  step(by: number): void;
  /** set options of the view, in Python too */
  remember(options: Record<string, any>): void;
  /** call with what is chosen of a kind whenever that changes */
  follow(what: Choice, listener: (value: any) => void): void;
  /** what a latent is called since its label was edited; undefined where it was not */
  edited(latent: number): { label: string; name: string } | undefined;
  /** call whenever a label was edited */
  relabelled(listener: () => void): void;
  /** call when the view is taken away */
  closing(listener: () => void): void;
  /** an answer; null where the question failed and the reason is shown, and where the view is gone */
  ask(question: string, args?: Args): Promise<Answer | null>;
  /** the same, but failures are the caller's, who may be asking ahead of time */
  request(question: string, args?: Args): Promise<Answer>;
  /** whether such a question may be answered: a page holds the answers to some */
  holds(question: string): boolean;
}

/** An exported page's data: see docs/widgets.md. */
export interface PageData {
  /** what is chosen at first */
  selections: Partial<Record<Choice, any>>[];
  views: PageEntry[];
  shelves: { index: string; per: number; chunks: string[] }[];
}

export interface PageEntry {
  kind: string;
  /** number of its selection */
  selection: number;
  follows: Choice[];
  options: Record<string, any>;
  /** number of the shelf that answers a question */
  shelves: Record<string, number>;
}

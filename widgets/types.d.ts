/** What a question is answered with: JSON, and arrays as bytes. */
export interface Answer {
  header: any;
  buffers: Uint8Array<ArrayBuffer>[];
}

export interface Bridge {
  /** whether a kernel answers */
  live: boolean;
  ask(name: string, args?: Record<string, any>): Promise<Answer>;
  close(): void;
}

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

export interface View {
  model: Model;
  body: HTMLElement;
  bridge: Bridge;
  /** show a message above the view; "" takes it away */
  say(message: string): void;
  latent(): number | null;
  choose(latent: number | null): void;
  onLatent(listener: (latent: number | null) => void): void;
  /** an answer, or null where the question failed and the reason is shown */
  ask(name: string, args?: Record<string, any>): Promise<Answer | null>;
}

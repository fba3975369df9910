// What a player's hands do: keys by their place on the keyboard, the mouse, a gamepad, fingers. One object of it all.

const looks = { look_up: "ArrowUp", look_down: "ArrowDown", look_left: "ArrowLeft", look_right: "ArrowRight" };
const pad = { forward: [1, -1], back: [1, 1], left: [0, -1], right: [0, 1] }; // axis and sign
const cooldown = 1300; // milliseconds in which browsers refuse a pointer lock after Escape
const perPixel = 0.03; // mouse steps

export class Controls {
  // `changed` is called when what is held changes; `names` are the server's.
  constructor(view, world, changed) {
    Object.assign(this, { view, world, changed, held: new Map(), turn: [0, 0], sensitivity: 1, invert: false, free: 0 });
    this.standard = Object.fromEntries(world.columns.map((column, i) => [column, code(world.keys[i])]));
    for (const [name, key] of Object.entries(looks)) if (world.names.includes(name)) this.standard[name] = key;
    this.codes = { ...this.standard, ...stored(world.model) };
    addEventListener("keydown", (event) => this.#key(event, true));
    addEventListener("keyup", (event) => this.#key(event, false));
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    document.addEventListener("pointerlockchange", () => {
      if (document.pointerLockElement !== view) {
        this.free = performance.now() + cooldown;
        this.release();
      }
    });
    view.addEventListener("click", () => this.lock());
    view.addEventListener("mousemove", (event) => {
      if (document.pointerLockElement === view) this.#turn(event.movementX, event.movementY);
    });
    this.#fingers();
  }

  // Takes the mouse, as soon as the browser gives it: for a second after Escape it does not.
  lock() {
    if (!this.world.mouse || matchMedia("(pointer: coarse)").matches) return;
    const ask = () => this.view.requestPointerLock?.()?.catch?.(() => {});
    setTimeout(ask, Math.max(0, this.free - performance.now()));
  }

  // Names that are held, by keys, buttons and the gamepad.
  names() {
    const names = new Set(this.held.values());
    const gamepad = navigator.getGamepads?.().find((one) => one?.connected);
    if (gamepad) {
      const far = (axis, sign) => gamepad.axes[axis] * sign > 0.35;
      for (const [name, [axis, sign]] of Object.entries(pad))
        if (this.world.columns.includes(name) && far(axis, sign)) names.add(name);
      const [, , x, y] = gamepad.axes;
      if (this.world.mouse && Math.hypot(x, y) > 0.15) this.#turn(x * 16, y * 16);
    }
    return [...names].sort();
  }

  // How far the mouse moved since this was asked last: [pitch, yaw] in mouse steps.
  moved() {
    const turn = this.turn;
    this.turn = [0, 0];
    return turn;
  }

  release() {
    this.held.clear();
    this.turn = [0, 0];
    this.changed();
  }

  // The next key that is pressed stands for `name` from now on.
  rebind(name, done) {
    addEventListener("keydown", (event) => {
      event.preventDefault();
      event.stopImmediatePropagation();
      if (event.code !== "Escape") {
        this.codes[name] = event.code;
        localStorage.setItem(`mgjax keys ${this.world.model}`, JSON.stringify(this.codes));
      }
      done();
    }, { once: true, capture: true });
  }

  reset() {
    this.codes = { ...this.standard };
    localStorage.removeItem(`mgjax keys ${this.world.model}`);
  }

  #key(event, down) {
    if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = Object.keys(this.codes).find((one) => this.codes[one] === event.code);
    if (!name) return;
    event.preventDefault();
    if (down && !event.repeat) this.held.set(event.code, name);
    else if (!down) this.held.delete(event.code);
    if (!event.repeat) this.changed();
  }

  #turn(x, y) {
    const scale = perPixel * this.sensitivity;
    this.turn[0] += (this.invert ? y : -y) * scale;
    this.turn[1] += x * scale;
    this.changed();
  }

  #fingers() {
    let finger = null;
    this.view.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse") finger = event;
    });
    this.view.addEventListener("pointermove", (event) => {
      if (event.pointerId !== finger?.pointerId) return;
      this.#turn(2 * (event.clientX - finger.clientX), 2 * (event.clientY - finger.clientY));
      finger = event;
    });
    for (const end of ["pointerup", "pointercancel"]) this.view.addEventListener(end, () => (finger = null));
  }

  // Buttons for fingers, in `place`.
  showPad(place) {
    if (!place.hidden) return;
    place.hidden = false;
    const areas = { forward: "1/2", back: "2/2", left: "2/1", right: "2/3" };
    for (const [i, column] of this.world.columns.entries()) {
      const button = Object.assign(document.createElement("button"), { textContent: this.world.keys[i].toUpperCase() });
      button.setAttribute("aria-label", column);
      if (areas[column]) button.style.gridArea = areas[column];
      button.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.held.set(`pad ${column}`, column);
        this.changed();
      });
      for (const end of ["pointerup", "pointerleave", "pointercancel"])
        button.addEventListener(end, () => this.held.delete(`pad ${column}`) && this.changed());
      place.append(button);
    }
  }
}

export const typing = (target) =>
  target instanceof HTMLElement && target.matches("input:not([type=range]):not([type=checkbox]), textarea");

export const label = (code) => code.replace(/^(Key|Digit|Arrow)/, "");

function code(key) {
  return /^[a-z]$/.test(key) ? `Key${key.toUpperCase()}` : /^[0-9]$/.test(key) ? `Digit${key}` : key;
}

function stored(model) {
  try {
    return JSON.parse(localStorage.getItem(`mgjax keys ${model}`)) ?? {};
  } catch {
    return {};
  }
}

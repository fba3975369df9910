// Frames come in bursts, a chunk at a time, and are shown one after another: each at its time, the newest of those that
// are due, and the last one for as long as none is there.

export class Pacer {
  constructor(show) {
    Object.assign(this, { show, waiting: [], epoch: 0, dropped: 0, held: 0, last: 0, period: 1000 / 17, starved: true });
    requestAnimationFrame((now) => this.#tick(now));
  }

  // A decoded frame that is to be seen at `due`, on the clock of performance.now().
  put(frame) {
    if (frame.epoch < this.epoch) return frame.image.close();
    if (frame.epoch > this.epoch) this.clear(frame.epoch);
    // One that arrives after its time moves all that follow: the world stands still rather than running after it.
    const now = performance.now(), before = this.waiting.at(-1);
    frame.due = Math.max(frame.due, before ? before.due + this.period * 0.9 : now);
    if (frame.due > now + 3000) frame.due = now;
    this.waiting.push(frame);
  }

  clear(epoch) {
    for (const frame of this.waiting) frame.image.close();
    Object.assign(this, { waiting: [], epoch });
  }

  #tick(now) {
    requestAnimationFrame((later) => this.#tick(later));
    let chosen = null;
    while (this.waiting.length && this.waiting[0].due <= now + 4) {
      if (chosen) {
        chosen.image.close();
        this.dropped++;
      }
      chosen = this.waiting.shift();
    }
    if (chosen) {
      this.show(chosen, now);
      chosen.image.close();
      this.last = now;
      this.starved = false;
    } else if (!this.waiting.length && !this.starved && now - this.last > 2 * this.period) {
      this.held++;
      this.starved = true;
    }
  }
}

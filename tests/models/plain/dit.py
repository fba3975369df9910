"""The causal DiT as a stream plays it: design page sections 2 to 4."""

import numpy as np

from plain.ops import attention, gelu_erf, gelu_tanh, layer_norm, linear, rms_norm, silu, softmax


def stream(config, W, io, chunks=None, steps=None):
    """The outputs of a rollout, under the names of the released tensors: `config` is the released config with its
    schedule, `io` the inputs. With `chunks` or `steps` only the first ones of them (of `steps` without the commit).
    """
    dit = Network(config["config"], {name.removeprefix("model."): np.float64(x) for name, x in W.items()})
    io = {name: np.float64(x) for name, x in io.items()}
    size, noise, condition = config["num_frame_per_block"], io["noise"][0], io["cond_latents"][0]
    sigmas = [sigma(step, config["timestep_shift"]) for step in config["denoising_steps"]]
    image = dit.image(io["visual_context"][0])
    rows = [io[name][0] for name in ("keyboard", "mouse") if name in io]
    past, latents, seen = [], [], {"warped_timesteps": 1000 * np.array(sigmas), "tap.img_emb": image[None]}

    for chunk in range(noise.shape[1] // size if chunks is None else chunks):
        frames = np.arange(chunk * size, (chunk + 1) * size)
        mask = np.broadcast_to(frames == 0, (4, *condition.shape[2:], size)).transpose(0, 3, 1, 2)
        fixed = np.concatenate([mask, condition[:, frames]])
        x = noise[:, frames]
        for step, level in enumerate(sigmas[:steps]):
            taps = seen if chunk == step == 0 else {}
            timestep = np.float64(np.float32(1000) * level)
            flow, _ = dit(np.concatenate([x, fixed]), timestep, frames, rows, image, past, taps)
            seen[f"flow.chunk{chunk}.step{step}"] = flow[None]
            clean = x - level * flow
            if step + 1 < len(sigmas):
                x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * io["renoise"][chunk, step]
        if steps is not None:
            continue
        latents.append(clean)
        past += dit(np.concatenate([clean, fixed]), 0.0, frames, rows, image, past, {})[1]
        seen["latents"] = np.concatenate(latents, 1)[None]
    return seen


def sigma(step, shift):
    """Noise of the listed step: entry 1000 - step of the table of 1000. The released table is of float32, whose last
    digit turns the fastest wave of a timestep by 6e-5."""
    s = np.float32(1 - (1000 - step) / 1000)
    return np.float32(shift) * s / (1 + np.float32(shift - 1) * s)


def angles(positions, pairs, theta):
    """[len(positions), pairs]: how far each pair of channels has turned."""
    return np.outer(positions, theta ** (-np.arange(pairs) / pairs))


def rotate(x, angle):
    """x [n, heads, e]; its first pairs of channels (2i, 2i + 1) turned by angle [n, pairs]."""
    pairs = angle.shape[1]
    turned = (x[..., : 2 * pairs : 2] + 1j * x[..., 1 : 2 * pairs : 2]) * np.exp(1j * angle)[:, None]
    x = x.copy()
    x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2] = turned.real, turned.imag
    return x


class Network:
    def __init__(self, config, W):
        self.config, self.actions, self.W, self.eps = config, config["action_config"], W, config["eps"]

    def image(self, features):
        W = self.W
        x = layer_norm(features, 1e-5, W["img_emb.proj.0.weight"], W["img_emb.proj.0.bias"])
        x = linear(W, "img_emb.proj.3", gelu_erf(linear(W, "img_emb.proj.1", x)))
        return layer_norm(x, 1e-5, W["img_emb.proj.4.weight"], W["img_emb.proj.4.bias"])

    def __call__(self, x, timestep, frames, rows, image, past, taps):
        """One pass over the latent frames `frames`: x [36, f, h, w] -> flow [16, f, h, w], and what each of the frames
        leaves behind for later ones: (frame, keys and values a layer). `past` is all that was left so far."""
        W, dim = self.W, self.config["dim"]
        channels, f, h, w = x.shape
        h, w = h // 2, w // 2
        patches = x.reshape(channels, f, h, 2, w, 2).transpose(1, 2, 4, 0, 3, 5).reshape(f * h * w, -1)
        x = patches @ W["patch_embedding.weight"].reshape(dim, -1).T + W["patch_embedding.bias"]
        taps["tap.patch_embedding"] = x.reshape(f, h, w, dim).transpose(3, 0, 1, 2)[None]

        half = self.config["freq_dim"] // 2
        angle = timestep * 10000 ** (-np.arange(half) / half)
        e = linear(W, "time_embedding.0", np.concatenate([np.cos(angle), np.sin(angle)]))
        e = linear(W, "time_embedding.2", silu(e))
        e0 = linear(W, "time_projection.1", silu(e))
        taps["tap.time_projection"] = np.tile(e0, (f, 1))

        kept = self.config["local_attn_size"] - f
        past = past[-kept:] if kept else []
        left = [{} for _ in frames]
        for layer in range(self.config["num_layers"]):
            x = self.block(layer, x, e0.reshape(6, dim), frames, (h, w), rows, image, past, left, taps)

        shift, scale = W["head.modulation"][0] + e
        y = linear(W, "head.head", layer_norm(x, self.eps) * (1 + scale) + shift)
        return y.reshape(f, h, w, 2, 2, -1).transpose(5, 0, 1, 3, 2, 4).reshape(-1, f, 2 * h, 2 * w), left

    def block(self, layer, x, e0, frames, grid, rows, image, past, left, taps):
        W, name, f = self.W, f"blocks.{layer}", len(frames)
        heads = self.config["num_heads"]
        shift1, scale1, gate1, shift2, scale2, gate2 = W[f"{name}.modulation"][0] + e0

        def split(x):
            return x.reshape(len(x), heads, -1)

        # (1) over the tokens of the frames in sight
        space = self.config["dim"] // heads // 6
        theta, place = 10000, np.indices((f, *grid)).reshape(3, -1)
        turn = [angles(frames[place[0]], self.config["dim"] // heads // 2 - 2 * space, theta)]
        turn = np.concatenate([*turn, *(angles(place[axis], space, theta) for axis in (1, 2))], 1)
        h, part = layer_norm(x, self.eps) * (1 + scale1) + shift1, f"{name}.self_attn"
        q, k = (rms_norm(linear(W, f"{part}.{s}", h), self.eps, W[f"{part}.norm_{s}.weight"]) for s in "qk")
        q, k, v = rotate(split(q), turn), rotate(split(k), turn), split(linear(W, f"{part}.v", h))
        y = linear(
            W, f"{part}.o", attention(q, self.sight(past, left, layer, "k", k), self.sight(past, left, layer, "v", v))
        )
        taps[f"tap.{part}"] = y[None]
        x = x + gate1 * y

        # (2) over the picture
        part = f"{name}.cross_attn"
        h = layer_norm(x, self.eps, W[f"{name}.norm3.weight"], W[f"{name}.norm3.bias"])
        q = split(rms_norm(linear(W, f"{part}.q", h), self.eps, W[f"{part}.norm_q.weight"]))
        k = split(rms_norm(linear(W, f"{part}.k", image), self.eps, W[f"{part}.norm_k.weight"]))
        y = linear(W, f"{part}.o", attention(q, k, split(linear(W, f"{part}.v", image))))
        taps[f"tap.{part}"] = y[None]
        x = x + y

        # (3) mouse, then keyboard
        if layer in self.actions["blocks"]:
            if self.actions["enable_mouse"]:
                x = x + self.mouse(layer, x, frames, rows[1], past, left)
            x = x + self.keyboard(layer, x, frames, rows[0], past, left)
            taps[f"tap.{name}.action"] = x[None]

        # (4)
        h = layer_norm(x, self.eps) * (1 + scale2) + shift2
        x = x + gate2 * linear(W, f"{name}.ffn.2", gelu_tanh(linear(W, f"{name}.ffn.0", h)))
        taps[f"tap.{name}"] = x[None]
        return x

    def sight(self, past, left, layer, kind, own):
        """Past frames' entries, then the own ones; `own` [f * n, ...] is left behind frame by frame."""
        for frame, entry in zip(left, own.reshape(len(left), -1, *own.shape[1:]), strict=True):
            frame[layer, kind] = entry
        return np.concatenate([frame[layer, kind] for frame in [*past, *left]])

    def rows_of(self, frames, rows):
        """Latent frame T sees 12 rows, [4T - 12, 4T); what is before row 0 is row 0."""
        n = self.actions["vae_time_compression_ratio"]
        count = n * self.actions["windows_size"]
        padded = np.concatenate([rows[:1].repeat(count, 0), rows])
        return np.stack([padded[n * frame : n * frame + count] for frame in frames])

    def turn(self, frames):
        return angles(frames, self.actions["rope_dim_list"][0] // 2, self.actions["rope_theta"])

    def mouse(self, layer, x, frames, rows, past, left):
        W, name, f, heads = self.W, f"blocks.{layer}.action_model", len(frames), self.actions["heads_num"]
        tokens = len(x) // f
        seen = self.rows_of(frames, rows).reshape(f, -1).repeat(tokens, 0)
        h = gelu_tanh(linear(W, f"{name}.mouse_mlp.0", np.concatenate([x, seen], 1)))
        h = linear(W, f"{name}.mouse_mlp.2", h)
        h = layer_norm(h, 1e-5, W[f"{name}.mouse_mlp.3.weight"], W[f"{name}.mouse_mlp.3.bias"])
        q, k, v = linear(W, f"{name}.t_qkv", h).reshape(f * tokens, 3, heads, -1).transpose(1, 0, 2, 3)
        turn = self.turn(frames.repeat(tokens))
        q, k = rotate(rms_norm(q, 1e-6), turn), rotate(rms_norm(k, 1e-6), turn)
        k, v = self.sight(past, left, layer, "mouse k", k), self.sight(past, left, layer, "mouse v", v)

        def places(x):  # [frames * tokens, heads, e] -> [tokens, heads, frames, e]
            return x.reshape(-1, tokens, *x.shape[1:]).transpose(1, 2, 0, 3)

        q, k, v = places(q), places(k), places(v)
        y = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v
        return linear(W, f"{name}.proj_mouse", y.transpose(2, 0, 1, 3).reshape(f * tokens, -1))

    def keyboard(self, layer, x, frames, rows, past, left):
        W, name, f, heads = self.W, f"blocks.{layer}.action_model", len(frames), self.actions["heads_num"]
        embedded = linear(W, f"{name}.keyboard_embed.2", silu(linear(W, f"{name}.keyboard_embed.0", rows)))
        seen = self.rows_of(frames, embedded).reshape(f, -1)
        k, v = linear(W, f"{name}.keyboard_attn_kv", seen).reshape(f, 2, heads, -1).transpose(1, 0, 2, 3)
        q = linear(W, f"{name}.mouse_attn_q", x).reshape(len(x), heads, -1)
        q = rotate(rms_norm(q, 1e-6), self.turn(frames.repeat(len(x) // f)))
        k = rotate(rms_norm(k, 1e-6), self.turn(frames))
        k, v = self.sight(past, left, layer, "keyboard k", k), self.sight(past, left, layer, "keyboard v", v)
        return linear(W, f"{name}.proj_keyboard", attention(q, k, v))

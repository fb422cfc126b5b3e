"""The official MeanFlow transformer's parameters in vamf's tree (flax linen names, see docs/names.md)."""

import numpy as np


def meanflow_dit(arrays, depth):
    """Parameters of vamf's DiT from arrays by the official names, `params/net/...`."""

    def of(name):
        return np.asarray(arrays[f"params/net/{name}"])

    def linear(name):
        return {part: of(f"{name}/_flax_linear/{part}") for part in ("kernel", "bias")}

    def embedding(name):
        first = linear(f"{name}/mlp/layers_0")
        half = len(first["kernel"]) // 2
        cos, sin = first["kernel"][:half], first["kernel"][half:]
        interleaved = np.stack([sin, cos], axis=1).reshape(first["kernel"].shape)
        return {"first": {**first, "kernel": interleaved}, "second": linear(f"{name}/mlp/layers_2")}

    def block(name):
        attention = {"inputs": linear(f"{name}/attn/qkv"), "output": linear(f"{name}/attn/proj")}
        parts = {"up": "mlp/fc1", "down": "mlp/fc2", "modulation": "adaLN_modulation/layers_1"}
        return {"attention": attention} | {ours: linear(f"{name}/{theirs}") for ours, theirs in parts.items()}

    kernel = of("x_embedder/proj/kernel")
    return {
        "patches": {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": of("x_embedder/proj/bias")},
        "times": {"t": embedding("t_embedder"), "t-r": embedding("h_embedder")},
        "classes": {"embedding": of("y_embedder/embedding_table/_flax_embedding/embedding")},
        "blocks": {i: block(f"blocks/layers_{i}") for i in range(depth)},
        "last": {
            "modulation": linear("final_layer/adaLN_modulation/layers_1"),
            "linear": linear("final_layer/linear"),
        },
    }

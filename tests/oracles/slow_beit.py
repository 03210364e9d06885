"""BEiT from its weights, with the bias of relative positions looked up pair by pair.

Any patches can be left out: those that stay keep their place in the grid, and there is no token,
no row and no column for the others.
"""

import torch
from torch import Tensor, nn


def outputs(model: nn.Module, image: Tensor, kept: list[int]) -> Tensor:
    """Outputs for one image (channel, height, width) from the patches that are kept."""
    tokens = _embed(model, image)[[0] + [1 + patch for patch in kept]]
    columns = model.patch_embed.grid_size[1]
    places = [None] + [divmod(patch, columns) for patch in kept]
    for block in model.blocks:
        tables = [block.attn.relative_position_bias_table]
        if model.rel_pos_bias is not None:
            tables.append(model.rel_pos_bias.relative_position_bias_table)
        tables = [table for table in tables if table is not None]
        tokens = _block(block, tokens, places, tables, model.patch_embed.grid_size)
    normed = _norm(tokens, model.norm)
    read = normed[1:].mean(0) if model.global_pool == "avg" else normed[0]
    return _norm(read, model.fc_norm) @ model.head.weight.T + model.head.bias


def token_ablation(model: nn.Module, images: Tensor) -> Tensor:
    """f(all) - f(all but patch i) as (batch, target, patch)."""
    count = model.patch_embed.num_patches
    maps = []
    with torch.no_grad():
        for image in images:
            whole = outputs(model, image, list(range(count)))
            falls = [
                whole - outputs(model, image, [p for p in range(count) if p != patch])
                for patch in range(count)
            ]
            maps.append(torch.stack(falls, dim=1))
    return torch.stack(maps)


def _embed(model: nn.Module, image: Tensor) -> Tensor:
    side = model.patch_embed.patch_size[0]
    rows, columns = model.patch_embed.grid_size
    tokens = [model.cls_token[0, 0]]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            weights = model.patch_embed.proj.weight
            tokens.append((weights * patch).sum((1, 2, 3)) + model.patch_embed.proj.bias)
    tokens = torch.stack(tokens)
    return tokens if model.pos_embed is None else tokens + model.pos_embed[0]


def _bias(table: Tensor, one: tuple | None, other: tuple | None, grid: tuple, head: int) -> Tensor:
    """Entry of the table for a query and a key; the last three are for the class token."""
    if one is None and other is None:
        return table[-1, head]
    if one is None:
        return table[-3, head]
    if other is None:
        return table[-2, head]
    down = one[0] - other[0] + grid[0] - 1
    right = one[1] - other[1] + grid[1] - 1
    return table[down * (2 * grid[1] - 1) + right, head]


def _block(block: nn.Module, tokens: Tensor, places: list, tables: list, grid: tuple) -> Tensor:
    attn = block.attn
    width = attn.proj.weight.shape[1]
    d = width // attn.num_heads
    together = _norm(tokens, block.norm1) @ attn.qkv.weight.T
    if attn.q_bias is not None:
        together = together + torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    heads = []
    for head in range(attn.num_heads):
        q, k, v = (together[:, part * width + head * d :][:, :d] for part in range(3))
        logits = q @ k.T / d**0.5
        for table in tables:
            logits = logits + torch.stack(
                [
                    torch.stack([_bias(table, one, other, grid, head) for other in places])
                    for one in places
                ]
            )
        weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ v)
    gamma_1 = 1 if block.gamma_1 is None else block.gamma_1
    gamma_2 = 1 if block.gamma_2 is None else block.gamma_2
    x = tokens + gamma_1 * (torch.cat(heads, dim=1) @ attn.proj.weight.T + attn.proj.bias)
    hidden = _norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x + gamma_2 * (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + norm.eps)
    return scaled * norm.weight + norm.bias

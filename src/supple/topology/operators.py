"""Which operators move numbers, reduce them, pool them, or make them from nothing."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: moved as they are
MOVES = _names("""
    cat index index_select gather constant_pad_nd repeat roll flip clone _to_copy copy stack take
    native_channel_shuffle channel_shuffle tril triu select_scatter slice_scatter diagonal_scatter
    index_put _index_put_impl scatter index_copy repeat_interleave _unsafe_index _reshape_copy unfold_copy
    select_copy slice_copy lift_fresh_copy unsafe_split unsafe_split_with_sizes unsafe_chunk
    split_with_sizes_copy _reshape_alias_copy
""")
#: moved, but unknown to int64: the ids travel as float64 (exact below 2**53)
FLOAT_MOVES = _names("""
    im2col pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
""")
REDUCTIONS = _names("""
    mean sum nansum amax amin max min prod var std var_mean std_mean norm linalg_vector_norm logsumexp
    any all argmax argmin median nanmedian mode count_nonzero nll_loss_forward nll_loss2d_forward aminmax
""")
SAME_SHAPE = _names("cumsum cumprod sort topk logcumsumexp cummax cummin _cummax_helper")
CONSTANTS = _names("""
    zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full
    new_empty new_empty_strided empty_strided arange zero fill uniform normal exponential lift_fresh
    bernoulli random scalar_tensor
""")
#: operator -> number of trailing spatial axes
POOLS: dict[str, int] = {
    **{f"max_pool{n}d_with_indices": n for n in (2, 3)},
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": n for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": n for n in (2, 3)},
    **{f"fractional_max_pool{n}d": n for n in (2, 3)},
    **{"upsample_linear1d": 1, "upsample_trilinear3d": 3, "grid_sampler_2d": 2, "grid_sampler_3d": 3},
    **{f"{name}2d": 2 for name in ("upsample_bilinear", "upsample_bicubic")},
    **{f"_{name}2d_aa": 2 for name in ("upsample_bilinear", "upsample_bicubic")},
}

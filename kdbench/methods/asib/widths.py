"""Widths of query, tokens and code, settled from the options and the pair before anything is built (1.4)."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.adapters import settle_widths
from kdbench.errors import Unsupported
from kdbench.methods.asib.options import ASIBOptions
from kdbench.types import Context


@dataclass(frozen=True)
class Widths:
    """What the bridge is built with.

    Args:
        query: Width of the student's feature.
        token: Width of the teachers' tokens.
        code: Width of the bottleneck.
        changes: What was settled otherwise than the options say, a sentence each.
    """

    query: int
    token: int
    code: int
    changes: tuple[str, ...] = ()


def settle(options: ASIBOptions, context: Context) -> Widths:
    """Return the widths of the bridge.

    Raises:
        Unsupported: If the teachers' tokens differ, the query does not fit, or the heads do not divide the code.

    Source:
        Specification of the ASIB benchmark, 1.1 and 1.4.
    """
    tokens, query, changes = _features(options, context)
    code = options.ib_mbm_out_dim
    if options.use_distillation_adapter and options.auto_align_ib_out_dim and code != tokens[0]:
        changes.append(f"ib_mbm_out_dim is {tokens[0]}, as the adapters' width, not {code}")
        code = tokens[0]
    if len(set(tokens)) > 1:
        wide = ", ".join(f"{t.name} {width}" for t, width in zip(context.teachers, tokens, strict=True))
        raise Unsupported(
            f"the teachers' features have different widths ({wide}); set use_distillation_adapter: true and "
            "distill_out_dim, so that they get one"
        )
    if options.ib_mbm_query_dim not in {0, query}:
        behind = _adapted(options)
        if not behind:
            raise Unsupported(
                f"ib_mbm_query_dim is {options.ib_mbm_query_dim}, but the query ({options.feat_kd_key}) of "
                f"{context.student.name} has width {query}; set it to that, or to 0 for the feature's own"
            )
        changes.append(f"ib_mbm_query_dim is {query}, as the student's adapter, not {options.ib_mbm_query_dim}")
    if code % options.ib_mbm_n_head:
        raise Unsupported(
            f"ib_mbm_n_head is {options.ib_mbm_n_head}, which does not divide the bridge's width {code} "
            "(ib_mbm_out_dim, or distill_out_dim with adapters); take a divisor"
        )
    return Widths(query, tokens[0], code, tuple(dict.fromkeys(changes)))  # two networks may be of a kind


def _adapted(options: ASIBOptions) -> bool:
    return options.use_distillation_adapter and options.feat_kd_key == "distill_feat"


def _features(options: ASIBOptions, context: Context) -> tuple[list[int], int, list[str]]:
    """Return the widths of the teachers' tokens, of the query, and what the adapters settled by themselves."""
    if not options.use_distillation_adapter:
        if options.feat_kd_key == "distill_feat":
            raise Unsupported(
                "feat_kd_key is 'distill_feat', but use_distillation_adapter is false; switch the adapters on, or set "
                "feat_kd_key: feat_2d"
            )
        return [teacher.embedding for teacher in context.teachers], context.student.embedding, []
    try:
        widths = settle_widths(context, options.distill_out_dim, options.distill_hidden_dim)
    except ValueError as error:
        raise Unsupported(str(error)) from error
    query = widths.student[0] if _adapted(options) else context.student.embedding
    return [out for out, _ in widths.teachers], query, list(widths.changes)

"""How a comparison of two methods reads, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from pydantic import JsonValue

from kdbench.leaderboard.comparing import Duel, Duels
from kdbench.leaderboard.json_text import json_text
from kdbench.leaderboard.judgement import OverallGain
from kdbench.leaderboard.text import DAGGER, NOT_AVAILABLE, number, plain, probability, ranges
from kdbench.stats import Interval

COMPARE_SCHEMA_VERSION = 1
_WIDTH = 11


def duels_text(found: Duels) -> str:
    """Return the comparison in plain text, ending in a newline."""
    blocks = ["\n".join(_duel(found, duel)) for duel in found.duels]
    blocks += ["\n".join(_overall(found, anchor, gain)) for anchor, gain in found.overall]
    return "\n\n".join([*blocks, "\n".join(_notes(found))]) + "\n"


def _duel(found: Duels, duel: Duel) -> Iterator[str]:
    gain, difference = duel.gain, duel.gain.difference
    yield f"{plain(duel.title)}: {found.first} against {found.second}"
    if difference is None or difference.mean is None:
        yield _line("difference", f"{NOT_AVAILABLE} ({difference.reason if difference else 'the same row'})")
        return
    ends = _ends(difference.interval) if difference.interval else f"{NOT_AVAILABLE}: {difference.reason}"
    yield _line(
        "difference",
        f"{number(difference.mean, signed=True)} pt, 95 % t interval [{ends}], n = {difference.n} "
        f"(seeds {ranges(difference.seeds)}), sd {number(difference.std)}",
    )
    yield _line("t test", f"p = {probability(gain.p_holm)}, paired, two-sided; one question, so not corrected")
    if duel.flip:
        yield _line("sign-flip", f"p = {probability(duel.flip.p_two_sided)} (floor {probability(duel.flip.floor)})")
    known = f"{number(gain.se_test)} pt over seeds and test images" if gain.se_test is not None else "not known"
    yield _line("SE_test", known)
    if duel.equivalence and duel.equivalence.interval:
        inside = "lies" if duel.equivalence.equal else "does not lie"
        yield _line(
            "equal?",
            f"90 % t interval [{_ends(duel.equivalence.interval)}] {inside} within ±{number(found.rope)} pt "
            f"(p = {probability(duel.equivalence.p)})",
        )
    if duel.mde is not None:
        yield _line("MDE", f"{number(duel.mde)} pt with a power of .8")
        needs = "; ".join(f"{size:g} pt: {seeds} seeds" for size, seeds in duel.needed)
        yield _line("to decide", f"with this sd, to show a difference of {needs}")
    yield _line("verdict", verdict(found, duel))


def verdict(found: Duels, duel: Duel) -> str:
    """Return what one pair's runs say."""
    gain, difference = duel.gain, duel.gain.difference
    if gain.unclaimed or difference is None or difference.mean is None:
        return f"nothing is claimed: {gain.unclaimed or 'no difference'}"
    better, worse = (found.first, found.second) if difference.mean > 0 else (found.second, found.first)
    if gain.star:
        small = f"; the difference is practically none (within ±{number(found.rope)} pt)" if gain.equal else ""
        if gain.dagger:
            images = f"; {DAGGER} not shown for other test images: below 1.96 SE_test"
        else:
            images = "" if gain.se_test is not None else "; other test images: not known"
        return f"{better} is better than {worse} on this pair{images}{small}"
    if gain.equal:
        return f"practically equal: within ±{number(found.rope)} pt"
    return "not decided: neither different nor equal is shown"


def _overall(found: Duels, anchor: str, gain: OverallGain) -> Iterator[str]:
    yield f"all these pairs, {plain(anchor)}: {found.first} against {found.second}"
    if gain.mean is None:
        yield _line("difference", f"{NOT_AVAILABLE} ({gain.unclaimed})")
        return
    ends = _ends(gain.interval) if gain.interval else NOT_AVAILABLE
    yield _line("difference", f"{number(gain.mean, signed=True)} pt, stratified 95 % t interval [{ends}]")
    yield _line("t test", f"p = {probability(gain.p_holm)}, stratified, two-sided; on exactly these pairs")
    yield _line("sign-flip", f"p = {probability(gain.p_flip)} (floor {probability(gain.floor)})")
    better, worse = (found.first, found.second) if gain.mean > 0 else (found.second, found.first)
    if gain.unclaimed:
        yield _line("verdict", f"nothing is claimed: {gain.unclaimed}")
    else:
        decided = f"{better} is better than {worse} on average over these pairs"
        yield _line("verdict", decided if gain.star else "not decided")


def _notes(found: Duels) -> Iterator[str]:
    if found.alone:
        yield f"Only one of the two has runs: {'; '.join(map(plain, found.alone))}."
    yield (
        f"alpha {found.alpha:g}, ROPE ±{number(found.rope)} pt. These p answer one question, asked before looking. Who "
        "looks at many pairs of methods, or at the best of many, takes the board, which corrects for that."
    )


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}"


def _ends(interval: Interval) -> str:
    return f"{number(interval.low, signed=True)}, {number(interval.high, signed=True)}"


def duels_json(found: Duels) -> str:
    """Return the comparison as ASCII JSON, ending in a newline; what is unknown or not finite is null."""
    tree: dict[str, JsonValue] = {
        "schema_version": COMPARE_SCHEMA_VERSION,
        "first": found.first,
        "second": found.second,
        "alpha": found.alpha,
        "rope": found.rope,
        "pairs": [_tree(found, duel) for duel in found.duels],
        "overall": [{"anchor": anchor, **asdict(gain)} for anchor, gain in found.overall],
        "only_one_of_the_two": list(found.alone),
    }
    return json_text(tree) + "\n"


def _tree(found: Duels, duel: Duel) -> dict[str, JsonValue]:
    gain = duel.gain
    return {
        "table": duel.title,
        "difference": asdict(gain.difference) if gain.difference else None,
        "p": gain.p_holm,
        "sign_flip": asdict(duel.flip) if duel.flip else None,
        "se_test": gain.se_test,
        "dagger": gain.dagger,
        "equivalence": asdict(duel.equivalence) if duel.equivalence else None,
        "equal": gain.equal,
        "significant": gain.star,
        "unclaimed_because": gain.unclaimed,
        "mde": duel.mde,
        "needed": [{"difference": size, "seeds": seeds} for size, seeds in duel.needed],
        "verdict": verdict(found, duel),
    }

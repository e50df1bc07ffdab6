"""The lock of a configuration: what it covers, its hash, and the hash after other keys came or one changed."""

from topic import Topic

from kdbench.methods.asib.config import changes, locked_sha256, sanitise


def run(case: Topic) -> None:
    """Compare one file."""
    stored = case.json("config")
    given = stored["cfg"]
    running, changed = {**given, **stored["runtime"]}, {**given, "kd_alpha": 0.40}
    case.equal("config.sanitized", sanitise(given), stored["sanitized"])
    case.equal("config.sha256", locked_sha256(given), stored["sha256"])
    case.equal("config.sha256_after_runtime", locked_sha256(running), stored["sha256_after_runtime"])
    case.equal("config.sha256_kd_alpha_040", locked_sha256(changed), stored["sha256_kd_alpha_040"])
    case.equal("config: no changes", str(changes(given, running)), "no changes")
    case.equal("config: changes", str(changes(given, changed)), "changed: kd_alpha")

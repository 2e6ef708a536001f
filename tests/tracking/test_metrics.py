"""`metrics.jsonl`: what was written whole is read, whatever a crash or a disk did to the rest."""

from __future__ import annotations

from routed_rl.tracking import METRICS, MetricsFile

NAMES = """
ledger/<env>/norm ledger/<env>/push ledger/<env>/share ledger/<env>/part_norm ledger/<env>/pace ledger/<env>/shift/<axis>
completions/<env>/own_push completions/<env>/own_shift completions/<env>/own_shift_up completions/<env>/own_shift_z
completions/<env>/evidence baseline/<env>/named baseline/<env>/screened baseline/<env>/starved
baseline/<env>/encouraged_marked baseline/<env>/recall baseline/<env>/precision labels/flagged ledger/cosine/<a>/<b>
quarantine/norm quarantine/growth quarantine/relative quarantine/layer/<l>/norm quarantine/unattributed
routing/routed_fraction routing/drift routing/bytes control/<kind>/<env>/ratio control/<kind>/<env>/rank
environment/<env>/reward environment/<env>/solve environment/<env>/<flag> environment/<env>/failures practice/<env>/<metric>
practice/<env>/completions environment/<env>/restarts evaluation/<model>/<env>/<metric> parity/policy parity/deployed
health/<env>/honest health/<env>/obfuscated_policy health/<env>/obfuscated_activations health/<env>/deceptive
health/<env>/auroc_base health/<env>/auroc_policy health/<quantity> time/health_s time/sync_s
time/rollout_wait_s rollout/staleness time/evaluation_s
train/value/explained_variance train/value/mean train/value/loss train/*
"""
"""Every metric that a run folder may have."""


def test_only_whole_rows_are_read_and_kept(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, {"train/loss": 0.5})
    whole = file.rows()
    others = [b"\xff\xfe", b"12", b"[]", b'{"loss": 1}', b'{"step": "2"}', b'{"step": 2, "name": "\xff"}', b"[" * 5000,
              b'{"step": 4, "tr']
    with open(file.path, "ab") as opened:
        opened.write(b"\n".join(others))
    assert file.rows() == whole and [row["step"] for row in whole] == [1, 2, 3]
    file.truncate(2)
    assert file.rows() == whole[:2] and file.path.read_text().count("\n") == 2


def test_a_metric_keeps_its_name_because_run_folders_are_read_by_later_versions():
    assert [name for name in NAMES.split() if name not in METRICS] == [], "map the old name where metrics.py reads rows"
    assert set(METRICS) == set(NAMES.split()), "a new metric: add its name to NAMES here"

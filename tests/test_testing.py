"""`blipmq.testing` as a user's tests use it: the example of docs/PYTHON.md under pytest, and the broker without pytest.

Invariant: the user's tests run in a process of their own, without the configuration of this suite.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import blipmq
from blipmq import testing

ROOT = Path(__file__).resolve().parent.parent


def run_pytest(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_of_the_page_runs_under_pytest(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    (example,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pytest_plugins" in text]
    plugin, rest = re.search(r"^pytest_plugins.*\n", example, re.MULTILINE), example
    assert plugin
    (tmp_path / "conftest.py").write_text(plugin[0])
    (tmp_path / "test_example.py").write_text(rest.replace(plugin[0], ""))
    assert "2 passed" in run_pytest(tmp_path)


def test_settings_reach_the_broker_and_each_test_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["blipmq.testing"]\n')
    (tmp_path / "test_settings.py").write_text(
        "import blipmq, pytest\n"
        "seen = []\n"
        "@pytest.fixture\n"
        "def blipmq_settings(): return {'auth': {'api_keys': ['a-key-of-the-tests-1']}}\n"
        "@pytest.mark.parametrize('turn', [1, 2])\n"
        "def test_it(blipmq_address, turn):\n"
        "    with pytest.raises(blipmq.errors.NotAllowed): blipmq.connect_blocking(blipmq_address)\n"
        "    with blipmq.connect_blocking(blipmq_address, api_key='a-key-of-the-tests-1', client_id='c') as client:\n"
        "        assert client.sessions()['total'] == 0\n"
        "        client.subscribe('a', qos=1, durable=True)\n"
    )
    assert "2 passed" in run_pytest(tmp_path)


def test_without_pytest_a_broker_runs_in_a_context_and_leaves_nothing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(testing.tempfile, "tempdir", str(tmp_path))
    with testing.running({"qos1": {"max_deliveries": 1}}) as one, testing.running() as two:
        assert one.address != two.address
        with blipmq.connect_blocking(one.address) as client:
            messages = client.subscribe("a", qos=1)
            assert client.publish("a", b"x", qos=1).subscriptions == 1
            assert messages.next(timeout_s=60).payload == b"x"
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []

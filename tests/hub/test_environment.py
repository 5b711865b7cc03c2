"""Environment variables that the Hub's client cannot use: named before any work, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from bot.errors import EnvironmentProblem
from bot.hub import environment
from bot.hub.access import check_endpoint
from bot.hub.environment import problems, take_out
from bot.hub.session import Hub

TIMEOUT = "HF_HUB_DOWNLOAD_TIMEOUT"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (TIMEOUT, "abc", "is not a whole number: 'abc'"),
        ("HF_HUB_ETAG_TIMEOUT", "1.5", "is not a whole number: '1.5'"),
        ("HF_HUB_ETAG_TIMEOUT", "-1", "is not a whole number: '-1'"),
        ("HF_HUB_OFFLINE", "maybe", "is neither 1 nor 0: 'maybe'"),
        ("HF_HUB_DISABLE_XET", "y", "is neither 1 nor 0: 'y'"),
        ("HF_ENDPOINT", "huggingface.co", "is not a URL: 'huggingface.co'"),
        ("HF_ENDPOINT", "http://[::1", "is not a URL: 'http://[::1'"),
        ("HF_ENDPOINT", "http://hub:port", "is not a URL"),
        ("HF_ENDPOINT", "https://me:s3cr3t@hub.example", "has a user name or password in it"),
        ("HF_ENDPOINT", "https://s3cr3t@hub.example", "has a user name or password in it"),
        ("HF_ENDPOINT", "https://me:s3cr3t@[::1", "is not a URL: 'https://***@[::1'"),
        ("ALL_PROXY", "foo://127.0.0.1:9", "has the scheme 'foo'; a proxy is http://, https://, socks5://"),
        ("all_proxy", "socks4://127.0.0.1:9", "has the scheme 'socks4'"),
        ("HTTPS_PROXY", "http://", "is not the URL of a proxy"),
        ("HTTPS_PROXY", "http://user:s3cr3t@[::1", "is not the URL of a proxy"),
        ("http_proxy", "proxy:abc", "is not the URL of a proxy"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "names a file that does not exist: /nowhere/ca.pem"),
        ("SSL_CERT_FILE", __file__, f"names a file without certificates in PEM format: {__file__}"),
        ("SSL_CERT_FILE", "/", "names a file that cannot be read: /"),
        ("SSL_CERT_DIR", "/nowhere", "names a folder that does not exist: /nowhere"),
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "names a file that does not exist"),
        ("HF_HOME", f"{__file__}/home", f"names a folder that cannot be written: {__file__}/home"),
        ("HF_XET_CACHE", "/proc/1/xet", "names a folder that cannot be written"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_with_what_is_wrong(name: str, value: str, said: str) -> None:
    values = {name: value}
    [problem] = problems(values)
    assert problem.message.startswith(f"{name} {said}")
    assert problem.exit_code == 8
    assert problem.hint
    assert "s3cr3t" not in problem.message
    assert take_out(values) == {name: value}
    assert values == {}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        *((name, " ", None) for name in environment._RULES),
        (TIMEOUT, " 30\n", "30"),
        ("HF_HUB_OFFLINE", "off", "off"),
        ("COLUMNS", "80", "80"),
        *(("COLUMNS", value, None) for value in ("abc", "0", "\N{SUPERSCRIPT TWO}")),
        ("HF_ENDPOINT", "https://hub.example/", "https://hub.example/"),
        ("ALL_PROXY", "socks5h://user:pass@127.0.0.1:1080", "socks5h://user:pass@127.0.0.1:1080"),
        ("https_proxy", "proxy.example:3128", "proxy.example:3128"),
        ("REQUESTS_CA_BUNDLE", str(Path(__file__).parent), str(Path(__file__).parent)),
        ("HF_HOME", f"{Path(__file__).parent}/new/home", f"{Path(__file__).parent}/new/home"),
        ("HF_TOKEN", "hf_token\n", "hf_token\n"),
    ],
)
def test_an_empty_variable_counts_as_not_set_and_others_stay(name: str, value: str, kept: str | None) -> None:
    values = {name: value}
    assert take_out(values) == {}
    assert values.get(name) == kept
    assert list(problems(values)) == []


def test_the_first_problem_stops_what_needs_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "foo://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match="ALL_PROXY has the scheme 'foo'"):
        Hub.from_environment()


def test_variables_are_checked_before_the_client_reads_them(tmp_path: Path) -> None:
    """In new processes: huggingface_hub reads some only when it is imported."""
    (tmp_path / "watchlist.yaml").write_text("publish_to: me\nmodels: [lab/Tiny]\n")

    def run(*words: str, **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "bot", *words],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    unusable = {TIMEOUT: "abc", "HF_ENDPOINT": "http://[::1", "SSL_CERT_FILE": "/nowhere"}
    code, printed, _ = run("doctor", "--json", **unusable)
    found = [check["found"] for check in json.loads(printed) if check["name"] == "environment"]
    assert code == 8
    assert {line.partition(" ")[0] for line in found} == set(unusable)
    code, printed, said = run("check", **unusable, PYTHONIOENCODING="ascii", COLUMNS="0", LC_ALL="C")
    assert (code, said) == (0, "")
    assert printed.endswith("  lab/Tiny \\u2192 me/Tiny-awq\n")


def test_a_socks_proxy_that_is_not_there_is_an_endpoint_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """httpx2 needs a package more for it."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    close_session()
    check = check_endpoint(Hub("http://hub.example"))
    assert (check.status, check.found) == ("failed", "the Hub at http://hub.example refuses the connection")

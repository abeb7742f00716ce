"""Nothing that looks like a secret leaves through the logs."""

import json
import logging

import pytest

from cinderblock.core.logs import LogFormat, configure, redact


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Authorization: Bearer abcdef0123456789.xyz", "Authorization"),
        ("login with password=hunter22 failed", "failed"),
        ('{"chap": 1, "secret": "hunter22"}', "chap"),
        ("token: hunter22", "token"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter22\n-----END RSA PRIVATE KEY----- after", "after"),
    ],
)
def test_secrets_in_texts_are_cut_out_and_the_rest_stays(text, kept):
    clean = redact(text)
    assert "hunter22" not in clean
    assert "abcdef0123456789" not in clean
    assert kept in clean


def test_ordinary_words_stay():
    text = "volume default/tokens-db is secretless: 3 passwords rotated, basic info"
    assert redact(text) == text


def test_a_line_is_json_with_traceback_and_without_secrets(root_logger, capsys):
    configure("info", LogFormat.JSON)
    try:
        raise RuntimeError("password=hunter22")
    except RuntimeError:
        logging.getLogger("cinderblock.x").exception("failed with %s", "token=hunter22")
    logging.getLogger("cinderblock.x").debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert entry["logger"] == "cinderblock.x"
    assert entry["event"] == "failed with token=<redacted>"
    assert "RuntimeError" in entry["exception"]
    assert "hunter22" not in line


def test_console_lines_are_redacted_too(root_logger, capsys):
    configure("debug", LogFormat.CONSOLE)
    logging.getLogger("cinderblock.x").warning("secret=hunter22")
    logging.getLogger("kopf.objects").info("Handler 'volume' succeeded.")
    err = capsys.readouterr().err
    assert "<redacted>" in err
    assert "hunter22" not in err
    assert "Handler" not in err

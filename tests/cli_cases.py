"""Running the command line inside the test's process, and what a refusal looks like."""

from click.testing import CliRunner

from headway.cli import main


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result, *parts, code=2):
    """A message with these parts on stderr, nothing on stdout, no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    said = " ".join(result.stderr.split())
    for part in parts:
        assert part in said, said

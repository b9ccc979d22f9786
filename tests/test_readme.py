"""What the documents say is so: their commands, settings, examples, queries and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa

from tracker import cli, database
from tracker.reports.views import comments
from tracker.settings import DEFAULT_PATH, ClusterSettings, Settings, duration

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "tracker").rglob("*.md")))
}
README = DOCUMENTS["README.md"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def table(document: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is *first*, without its headings."""
    rows = DOCUMENTS[document].split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(cli.root))


def test_every_command_is_in_the_table_and_no_other() -> None:
    """The table of commands is complete, and promises none that does not exist."""
    listed = [
        cell.strip("`").removeprefix("tracker ")
        for row in table("tracker/cli/COMMANDS.md", "command")
        for cell in row[0].split(" · ")
    ]
    assert sorted(tuple(command.split()) for command in listed) == sorted(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example(path: tuple[str, ...]) -> None:
    """Each help text ends with a line to try."""
    with click.Context(COMMANDS[path], info_name="tracker " + " ".join(path)) as context:
        shown = COMMANDS[path].get_help(context)
    assert re.search(r"\n  Examples?\b.*\n +tracker ", shown, re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_line_is_one(document: str) -> None:
    """Each command and each option that a fenced block uses exists."""
    for block in blocks("sh", DOCUMENTS[document]):
        for part in re.split(r"&&|\n", re.sub(r"\\\n\s*", "", block)):
            words = shlex.split(part, comments=True)
            if not words or Path(words[0]).name != "tracker":
                continue
            path = next(tuple(words[1:n]) for n in (3, 2) if tuple(words[1:n]) in COMMANDS)
            parameters = COMMANDS[path].params
            options = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= options, part


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document: str) -> None:
    """Each link between documents leads somewhere."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", DOCUMENTS[document])
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_setting_is_in_the_table_with_its_default() -> None:
    """The table of settings is complete, and its defaults are the program's."""
    stated = {row[0].strip("`"): row[1].strip("`") for row in table("tracker/SETTINGS.md", "setting")}
    names = [name for name in Settings.model_fields if name != "clusters"]
    assert set(stated) == {f"TRACKER_{name.upper()}" for name in names}
    for name in ("database_url", "timezone", "lost_after_polls"):
        assert stated[f"TRACKER_{name.upper()}"] == str(Settings.model_fields[name].default)
    assert stated["TRACKER_LOST_AFTER"] == f"{Settings.model_fields['lost_after'].default.days} days"
    assert stated["TRACKER_DELAY_PER_POLL"] == f"{Settings.model_fields['delay_per_poll'].default.seconds} s"
    assert duration(stated["TRACKER_SEAL_AFTER"]) == Settings.model_fields["seal_after"].default
    assert stated["TRACKER_REQUEST_TIMEOUT"] == f"{Settings.model_fields['request_timeout'].default.seconds} s"


def test_every_key_of_a_cluster_is_in_the_table() -> None:
    """So is that of a cluster's settings."""
    stated = {row[0].strip("`"): row[2].strip("`") for row in table("tracker/SETTINGS.md", "key")}
    assert set(stated) == {name for name in ClusterSettings.model_fields if name != "name"} | {"api_key_file"}
    assert stated["path"] == DEFAULT_PATH
    for name in ("archive_days", "max_concurrency"):
        assert stated[name] == str(ClusterSettings.model_fields[name].default)
    assert float(stated["max_requests_per_second"]) == ClusterSettings.model_fields["max_requests_per_second"].default


def test_every_view_is_in_the_table() -> None:
    """So is that of the views, in the words of the comments on PostgreSQL."""
    stated = {row[0].strip("`"): row[1] for row in table("tracker/reports/SQL.md", "view")}
    assert stated == comments.ROWS


def test_the_configuration_of_several_clusters_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of tracker.toml is valid."""
    from tracker import settings

    (text,) = blocks("toml", DOCUMENTS["tracker/SETTINGS.md"])
    for name in ("w1a2b3c4d", "w5e6f7a8b"):
        key = tmp_path / f"{name}.key"
        key.write_text("secret")
        key.chmod(0o600)
    (tmp_path / "tracker.toml").write_text(text.replace("/etc/tracker", str(tmp_path)))
    assert set(settings.load(cwd=tmp_path).clusters) == {"w1a2b3c4d", "w5e6f7a8b"}


def test_all_four_ways_register_a_job(
    url: str, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Command, CSV, SQL and Python as they stand register their jobs, and each question in SQL can be asked."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("TRACKER_CLUSTER", "w1a2b3c4d")
    monkeypatch.setenv("TRACKER_API_KEY", "secret")
    (tmp_path / "jobs.csv").write_text(blocks("csv")[0])
    lines = [re.sub(r"\\\n\s*", "", block).strip() for block in blocks("sh")]
    for line in (next(line for line in lines if line.startswith(f"tracker {word}")) for word in ("add", "import")):
        assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    with database.writing(engine) as connection:
        insert, *questions = blocks("sql")
        connection.exec_driver_sql(insert)
    code = re.sub(r'create_engine\("[^"]*"\)', f'create_engine("{url}")', blocks("python")[0])
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - it is what a reader would run
    names["engine"].dispose()
    with database.reading(engine) as connection:
        for question in questions:
            connection.exec_driver_sql(question)
        jobs = connection.exec_driver_sql("SELECT jid, reference FROM report_jobs ORDER BY jid").all()
    assert [row.reference for row in jobs] == ["DSR-1042", "DSR-1044", "DSR-1043", "DSR-1042"]


def test_the_two_commands_are_one_line_each() -> None:
    """The README begins with a line that shows all of it, and one that passes the tests."""
    demo, tests = blocks("sh")[:2]
    assert demo.count("\n") == 1
    assert demo.endswith("/tracker demo\n")
    assert tests.count("\n") == 1
    assert "/pytest" in tests

"""`ttt-docs store` and `ttt-docs corpus`, from many documents to what the store holds of them."""

from __future__ import annotations

import json

from cli_commands import FIELDS, SMALL, TEXT


def test_from_documents_to_a_store_and_back(home, run, run_json, fails):
    (home / "books").mkdir()
    for number in range(3):
        (home / "books" / f"{number}.txt").write_text(TEXT[: 300 + 40 * number], "utf-8")
    (home / "books" / "bad.txt").write_text(" ")
    ingest = ("corpus", "ingest", "books", "--store", "memories", *SMALL, "--batch", "2")
    result = run_json(*ingest, code=1)
    assert result.keys() == FIELDS["corpus ingest"].keys() and result["read"] == 3
    assert [one["source"] for one in result["failed"]] == ["books/bad.txt"]
    again = run(*ingest, "--resume", code=1)
    assert "Read 0 documents" in again.stdout and "3 were there already" in again.stdout
    assert "books/bad.txt: " in again.stderr and "1 of 4 documents could not be read" in again.stderr

    listed = run_json("store", "list", "memories")
    assert listed.keys() == FIELDS["store list"].keys() and len(listed["entries"]) == 3 and listed["unfinished"] == {}
    assert all(entry.keys() == FIELDS["store show"].keys() for entry in listed["entries"])
    (entry,) = run_json("store", "list", "memories", "--name", "1.txt")["entries"]
    assert run_json("store", "show", "memories", entry["key"][:12]) == entry
    assert run_json("store", "list", "memories", "--metadata", "format=text", "--document", entry["key"][:9])["entries"]
    assert "1.txt" in run("store", "show", "memories", entry["key"]).stdout
    assert run("store", "list", "memories").stdout.count(".txt") == 3
    assert "0 memories" in fails("store", "show", "memories", "zz", code=2)
    assert "NAME=VALUE" in fails("store", "list", "memories", "--metadata", "format", code=2)

    checked = run_json("store", "verify", "memories")
    assert checked.keys() == FIELDS["store verify"].keys() and (checked["intact"], checked["damaged"]) == (3, [])
    path = home / "memories" / f"{entry['key']}.ttt"
    path.write_bytes(path.read_bytes()[:-1])
    (damaged,) = run_json("store", "verify", "memories", code=1)["damaged"]
    assert damaged["key"] == entry["key"]
    assert "1 damaged" in run("store", "verify", "memories", code=1).stdout

    (home / "memories" / ".ttt-1.tmp").write_bytes(b"half")
    assert run_json("store", "gc", "memories")["removed"] == []
    result = run_json("store", "gc", "memories", "--hours", "0", "--dry-run")
    assert result.keys() == FIELDS["store gc"].keys() and result["removed"] == [".ttt-1.tmp"]
    assert "1 were removed" in run("store", "gc", "memories", "--hours", "0").stdout
    assert json.loads(run("store", "list", "memories", "--json").stdout)["entries"]


def test_wrong_usage(home, fails):
    assert "there is no" in fails("corpus", "ingest", "nowhere/*.pdf", "--store", "memories", code=2)
    assert "no key" not in fails("store", "list", "nonsense://x", code=1)

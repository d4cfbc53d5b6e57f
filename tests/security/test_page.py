"""The table of published holes names every class, id and test, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ID = re.compile(r"(?:CVE|PYSEC)-\d{4}-\d+")


def test_the_table_and_the_tests_name_the_same_classes_ids_and_tests():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    source = (ROOT / "tests" / "security" / "test_published.py").read_text(encoding="utf-8")
    written: dict[int, tuple[set[str], set[str]]] = {}
    for row in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE):
        cells = row[1].split(" | ")
        written[int(row[0])] = set(ID.findall(cells[1])), set(re.findall(r"`(\w+)`", cells[3]))
    tested: dict[int, tuple[set[str], set[str]]] = {}
    begin = 0
    for found in re.finditer(r"^def (test_(\d+)_\w+)", source, re.MULTILINE):
        ids, names = tested.setdefault(int(found.group(2)), (set(), set()))
        ids |= set(ID.findall(source[begin : found.start()]))
        names.add(found.group(1))
        begin = found.end()
    assert written == tested
    assert set(written) == set(range(1, 22))


def test_every_test_that_the_page_names_exists():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| .+ \|$", page, re.MULTILINE):
        for name in re.findall(r"`([\w/]+\.py)`", row):
            found = list(ROOT.glob(f"tests/**/{name.rpartition('/')[2]}"))
            assert found, f"the page names {name}"

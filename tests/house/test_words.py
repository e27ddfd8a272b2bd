"""The field's words, see docs/glossary.md: what this house once called otherwise does not come back."""

import re

import pytest

from tests.house.test_imports import PRODUCT, ROOT

INSTEAD = {
    r"hidden[ _](tokens?|positions?|codes?|mask)": "masked",
    r"heats?": "temperature",
    r"judge[sd]?": "discriminator or critic",
    r"KnownRows|row_kinds": "unique rows",
    r"hide_\w+": "mask or remask",
    r"token places?": "positions",
}
TEXTS = [*PRODUCT, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("old", INSTEAD)
def test_words(old: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in TEXTS
        for match in re.finditer(rf"\b({old})\b", path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert found == [], f"say {INSTEAD[old]}"


def test_the_glossary_has_a_row_for_each() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for word in ("masked", "position", "temperature", "discriminator", "critic", "remask"):
        assert word in text
    assert 10 <= len(re.findall(r"^\| ", text, re.MULTILINE)) <= 16
    assert "(glossary.md)" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

"""Shared by the evaluation tests: the published scorers' results, and small files of questions."""

import base64
import csv
import io
import json
from pathlib import Path
from xml.sax.saxutils import escape
from zipfile import ZipFile

from PIL import Image

SCORING = json.loads(
    (Path(__file__).parents[1] / "golden/evaluation/scoring.json").read_text("utf-8")
)
"""Inputs and results of the published scorers."""


def columns_of(rows):
    return list(dict.fromkeys(name for row in rows for name in row))


def write_tsv(path, rows, columns=None):
    columns = columns or columns_of(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return path


def write_jsonl(path, rows):
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")
    return path


def write_xlsx(path, rows):
    """Write a workbook as spreadsheet programs do: shared texts, numbers as numbers."""
    columns = columns_of(rows)
    texts = []

    def cell(value, place):
        if isinstance(value, bool):
            return f'<c r="{place}" t="b"><v>{value:d}</v></c>'
        if isinstance(value, int | float):
            return f'<c r="{place}"><v>{value}</v></c>'
        texts.append(value)
        return f'<c r="{place}" t="s"><v>{len(texts) - 1}</v></c>'

    lines = [columns, *([row.get(name) for name in columns] for row in rows)]
    sheet = "".join(
        f'<row r="{number}">'
        + "".join(
            cell(value, f"{chr(ord('A') + column)}{number}")
            for column, value in enumerate(line)
            if value is not None
        )
        + "</row>"
        for number, line in enumerate(lines, 1)
    )
    namespace = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    shared = "".join(f'<si><t xml:space="preserve">{escape(text)}</t></si>' for text in texts)
    with ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {namespace}><sheetData>{sheet}</sheetData></worksheet>",
        )
        archive.writestr("xl/sharedStrings.xml", f"<sst {namespace}>{shared}</sst>")
    return path


WRITERS = {"tsv": write_tsv, "jsonl": write_jsonl, "xlsx": write_xlsx}


def png(color="red", size=(60, 40)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

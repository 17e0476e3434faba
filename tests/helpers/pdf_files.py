"""PDF files written by hand: damaged, locked, and made to take for ever."""

import zlib

CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
_FORM = b"/Type /XObject /Subtype /Form /BBox [0 0 200 200]"


def pdf_of(objects, trailer=b""):
    """A PDF of numbered objects, the first of which is the catalog."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out) + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R %s >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table, len(objects) + 1, trailer, len(out))
    )


def stream(data, entries=b"", *, packed=0):
    """A stream, compressed as often as `packed` says."""
    filters = b"/Filter [%s]" % (b"/FlateDecode " * packed) if packed else b""
    for _ in range(packed):
        data = zlib.compress(data, 9)
    return b"<< %s %s /Length %d >>\nstream\n%s\nendstream" % (entries, filters, len(data), data)


def page_of(content, resources=b"", box=b"0 0 200 200", more=()):
    """A PDF of one page; `more` are objects from number 5 on."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources << %s >> >>"
    pages = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return pdf_of([CATALOG, pages, page % (box, resources), content, *more])


def pages_of(kids, count, more=()):
    return pdf_of([CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count), *more])


EMPTY_PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] >>"


def many_pages(count):
    kids = b" ".join(b"%d 0 R" % (number + 3) for number in range(count))
    return pages_of(kids, count, [EMPTY_PAGE] * count)


def locked():
    """Encrypted, with a password that nobody has."""
    encrypt = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O (%s) /U (%s) >> /ID [(a) (a)]"
    objects = [CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", EMPTY_PAGE]
    return pdf_of(objects, encrypt % (b"o" * 32, b"u" * 32))


def forms_in_forms(depth):
    """Each draws the next one ten times."""
    nested = [
        stream(b"/F Do " * 10, _FORM + b" /Resources << /XObject << /F %d 0 R >> >>" % (6 + number))
        for number in range(depth)
    ]
    last = stream(b"0 0 10 10 re f", _FORM)
    return page_of(stream(b"/F Do"), b"/XObject << /F 5 0 R >>", more=[*nested, last])


def huge_image():
    image = b"/Type /XObject /Subtype /Image /Width 60000 /Height 60000 /BitsPerComponent 8"
    data = stream(bytes(2**20), image + b" /ColorSpace /DeviceRGB", packed=1)
    return page_of(stream(b"200 0 0 200 0 0 cm /I Do"), b"/XObject << /I 5 0 R >>", more=[data])


def tiny_pattern():
    """A tile of a thousandth of a point, for a whole page."""
    pattern = (
        b"/Type /Pattern /PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 .01 .01]"
        b" /XStep .001 /YStep .001 /Resources << >>"
    )
    fill = stream(b"/Pattern cs /P scn 0 0 200 200 re f")
    tile = stream(b"0 0 .005 .005 re f", pattern)
    return page_of(fill, b"/Pattern << /P 5 0 R >>", more=[tile])

"""EPUB to text: the files of the spine in order, chapters named by the table of contents."""

from __future__ import annotations

import io
import lzma
import posixpath
import zipfile
import zlib
from dataclasses import dataclass
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

from ttt_docs.documents.document import Document
from ttt_docs.documents.html import HtmlText, decode_html
from ttt_docs.errors import DocumentError
from ttt_docs.text.spans import spans_from_starts

_PIECE = 1 << 20
_GAP = "\n\n"


@dataclass
class _Archive:
    """A zip whose members are read with a limit on all their bytes together, whatever its directory claims."""

    name: str
    zip: zipfile.ZipFile
    max_bytes: int
    read_bytes: int = 0

    def read(self, path: str) -> bytes:
        pieces = []
        try:
            with self.zip.open(path) as member:
                while self.read_bytes <= self.max_bytes and (piece := member.read(_PIECE)):
                    self.read_bytes += len(piece)
                    pieces.append(piece)
        except KeyError:
            problem = f"lacks its file {path!r}. Get an intact copy."
        except RuntimeError as error:  # zipfile's for a member with a password, or of an unknown compression
            problem = f"cannot be unpacked ({error}). Get a copy without a password, packed in the usual way."
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError) as error:
            problem = f"is damaged at {path!r} ({error}). Get an intact copy."
        else:
            if self.read_bytes <= self.max_bytes:
                return b"".join(pieces)
            problem = f"unpacks to more than {self.max_bytes} bytes. If you trust it, raise the limit (max_bytes)."
        raise DocumentError(f"{self.name}: the EPUB {problem}")

    def xml(self, path: str) -> ElementTree.Element:
        data = self.read(path)
        # Entity declarations are how XML documents blow up or reach for other files; EPUB has no need of them.
        if b"<!ENTITY" in data or b"<\x00!\x00E\x00N" in data or b"\x00<\x00!\x00E\x00N" in data:
            raise DocumentError(f"{self.name}: {path!r} declares XML entities, which are not read for safety.")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise DocumentError(f"{self.name}: {path!r} is not valid XML ({error}). Get an intact copy.") from None


def read_epub(data: bytes, name: str, max_bytes: int) -> Document:
    """A Document of an EPUB, with a chapter span for each entry of its table of contents, or else for each heading.

    `max_bytes` limits the unpacked bytes. Nothing outside the file is read. Raises DocumentError when the zip or the
    book inside it is damaged, encrypted, too large or without text.
    """
    try:  # NotImplementedError: zipfile's, for a version of the format it does not know
        archive = _Archive(name, zipfile.ZipFile(io.BytesIO(data)), max_bytes)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise DocumentError(f"{name}: the zip that an EPUB is cannot be read ({error}). Get an intact copy.") from None
    with archive.zip:
        root = archive.xml("META-INF/container.xml").find(".//{*}rootfile")
        package_path = None if root is None else root.get("full-path")
        if not package_path:
            raise DocumentError(f"{name}: the EPUB does not say where its book is. Get an intact copy.")
        package = archive.xml(package_path)
        manifest = _manifest(package, package_path)
        spine = [
            manifest[ref]["path"]
            for item in package.iterfind(".//{*}spine/{*}itemref")
            if (ref := item.get("idref", "")) in manifest and "nav" not in manifest[ref]["properties"].split()
        ]
        if not spine:
            raise DocumentError(f"{name}: the EPUB names no files to read (its spine is empty). Get an intact copy.")
        _refuse_protected(archive, spine)
        return _join(archive, spine, _contents(archive, package, manifest), _metadata(package))


def _manifest(package: ElementTree.Element, package_path: str) -> dict[str, dict[str, str]]:
    return {
        item.get("id", ""): {
            "path": _resolve(package_path, item.get("href", "")),
            "type": item.get("media-type", ""),
            "properties": item.get("properties", ""),
        }
        for item in package.iterfind(".//{*}manifest/{*}item")
    }


def _metadata(package: ElementTree.Element) -> dict[str, str]:
    fields = {"title": "title", "creator": "author", "language": "language"}
    found = {ours: package.findtext(f".//{{*}}metadata/{{*}}{theirs}") for theirs, ours in fields.items()}
    return {"format": "epub"} | {key: " ".join(value.split()) for key, value in found.items() if value}


def _resolve(base: str, href: str) -> str:
    """The archive path of `href` as written in the file `base`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(urldefrag(href).url))).lstrip("/")


def _contents(
    archive: _Archive, package: ElementTree.Element, manifest: dict[str, dict[str, str]]
) -> dict[str, list[tuple[str, str]]]:
    """Path -> (fragment, title) of the table of contents: the EPUB 3 nav, else the EPUB 2 NCX, else nothing."""
    spine = package.find(".//{*}spine")
    ncx = manifest.get(spine.get("toc", "") if spine is not None else "")
    ncx = ncx or next((item for item in manifest.values() if item["type"] == "application/x-dtbncx+xml"), None)
    nav = next((item for item in manifest.values() if "nav" in item["properties"].split()), None)
    entries: list[tuple[str, str, str]] = []
    try:
        if nav:
            page = HtmlText(_toc_part(decode_html(archive.read(nav["path"]), archive.name)))
            entries = [(nav["path"], href, title) for href, title in page.links]
        elif ncx:
            for point in archive.xml(ncx["path"]).iterfind(".//{*}navPoint"):
                content = point.find("{*}content")
                title = point.findtext("{*}navLabel/{*}text") or ""
                entries.append((ncx["path"], content.get("src", "") if content is not None else "", title))
    except DocumentError:
        if archive.read_bytes > archive.max_bytes:
            raise
        entries = []  # a broken table of contents costs titles, not the book
    found: dict[str, list[tuple[str, str]]] = {}
    for base, href, title in entries:
        if title.strip():
            found.setdefault(_resolve(base, href), []).append((urldefrag(href).fragment, " ".join(title.split())))
    return found


def _toc_part(source: str) -> str:
    """The nav of type "toc", without the page list and the landmarks that may follow it."""
    start = source.find('type="toc"')
    end = source.find("</nav", start)
    return source[source.rfind("<nav", 0, start) : end] if 0 <= start < end else source


def _refuse_protected(archive: _Archive, spine: list[str]) -> None:
    if "META-INF/encryption.xml" not in archive.zip.namelist():
        return
    locked = {
        unquote(ref.get("URI", "")) for ref in archive.xml("META-INF/encryption.xml").iterfind(".//{*}CipherReference")
    }
    if locked.intersection(spine):  # otherwise only fonts are obfuscated
        raise DocumentError(f"{archive.name}: the EPUB is protected (DRM) and cannot be read. Use a copy without it.")


def _join(
    archive: _Archive, spine: list[str], contents: dict[str, list[tuple[str, str]]], metadata: dict[str, str]
) -> Document:
    parts: list[str] = []
    starts: list[tuple[int, str]] = []
    length = 0
    for path in spine:
        page = HtmlText(decode_html(archive.read(path), archive.name))
        if not page.text.strip():
            continue
        if parts:
            parts.append(_GAP)
            length += len(_GAP)
        entries = {page.anchors.get(fragment, 0): title for fragment, title in reversed(contents.get(path, []))}
        named = sorted(entries.items()) or ([] if contents else list(page.headings))
        starts += [(length + offset, title) for offset, title in named]
        parts.append(page.text)
        length += len(page.text)
    return Document.from_text(
        "".join(parts), name=archive.name, spans=spans_from_starts("chapter", starts, length), metadata=metadata
    )

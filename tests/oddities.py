"""Three small folders of color photographs, drawn, with everything odd that people's folders hold.

Every function fills an empty folder and says what is to become of each file. Classes are shapes of one color on a
busy background, which any network tells apart.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = ("crimson", "seagreen", "royalblue", "orange")
CAT = unicodedata.normalize("NFD", "고양이")  # as macOS writes names
SUFFIX_OF_LONG_NAMES = "ä" * 110


@dataclass
class Outcome:
    """Paths below the folder: used, with their label; dropped and ignored, with a part of the reason."""

    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def picture(kind: int, number: int, *, size: tuple[int, int] = (72, 64)) -> Image.Image:
    """Return photograph ``number`` of a class, RGB: a circle, square, triangle or ring in its color."""
    rng = np.random.default_rng([kind, number])
    background = Image.fromarray(rng.integers(40, 200, (5, 6, 3), dtype=np.uint8)).resize(size)
    pen = ImageDraw.Draw(background)
    radius = int(rng.integers(12, 20))
    x, y = int(rng.integers(radius, size[0] - radius)), int(rng.integers(radius, size[1] - radius))
    box = (x - radius, y - radius, x + radius, y + radius)
    color = COLORS[kind % len(COLORS)]
    if kind % 4 == 0:
        pen.ellipse(box, fill=color)
    elif kind % 4 == 1:
        pen.rectangle(box, fill=color)
    elif kind % 4 == 2:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=color)
    else:
        pen.ellipse(box, outline=color, width=6)
    noise = rng.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(background).astype(int) + noise, 0, 255).astype(np.uint8))


def save(image: Image.Image, file: Path, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


def odd_names(root: Path, *, each: int = 16) -> Outcome:
    """Two classes with Korean and spaced names, in class folders: names, links, litter, folders in folders."""
    found = Outcome()
    for kind, (folder, label) in enumerate(((CAT, "고양이"), ("big dog", "big dog"))):
        for number in range(each):
            name = f"{folder}/{number:02d}.png"
            save(picture(kind, number), root / name)
            found.used[name] = label
    more = {
        f"{CAT}/2024/여름/00.png": 100,  # nested, and called like another
        f"{CAT}/2024__a.png": 101,
        f"{CAT}/2024/a.png": 102,  # flattened, the one above
        f"{CAT}/UPPER.JPG": 103,
        f"{CAT}/upper.jpg": 104,
        f"{CAT}/{unicodedata.normalize('NFD', '봄')}.png": 105,
        f"{CAT}/{unicodedata.normalize('NFC', '봄')}.png": 106,
        f"{CAT}/a folder {SUFFIX_OF_LONG_NAMES}/a photo {SUFFIX_OF_LONG_NAMES}.jpeg": 107,
        f"{CAT}/no ending": 108,
    }
    for name, number in more.items():
        ending = name.lower().rpartition(".")[2]
        save(picture(0, number), root / name, format="JPEG" if ending in ("jpg", "jpeg") else "PNG")
        found.used[name] = "고양이"
    (root / "big dog" / "linked.png").symlink_to("00.png")
    found.used["big dog/linked.png"] = "big dog"
    outside = save(picture(1, 200), root.parent / "outside.png")
    (root / "big dog" / "from outside.png").symlink_to(outside)
    found.used["big dog/from outside.png"] = "big dog"
    _add_oddities(root, found)
    return found


def _add_oddities(root: Path, found: Outcome) -> None:
    (root / "big dog" / "dangling.png").symlink_to("nowhere.png")
    (root / "big dog" / "loop.png").symlink_to("loop.png")
    (root / "big dog" / "again").symlink_to("../big dog", target_is_directory=True)
    (root / "linked class").symlink_to("big dog", target_is_directory=True)
    os.mkfifo(root / "big dog" / "pipe.png")
    for name in ("stray.png", "big dog/notes.txt"):
        (root / name).write_text("no image", encoding="utf-8")
    for name in (".hidden.png", "big dog/.DS_Store", "big dog/Thumbs.db", "big dog/desktop.ini"):
        (root / name).write_bytes(b"\0")
    (root / "big dog" / ".thumbnails").mkdir()
    save(picture(1, 0), root / "big dog" / ".thumbnails" / "00.png")
    (root / "nothing in it").mkdir()
    with open(os.fsencode(root / "big dog") + b"/\xff\xfe.png", "wb") as file:
        file.write(b"\0")
    found.dropped |= {
        "big dog/dangling.png": "leads nowhere",
        "big dog/loop.png": "leads nowhere",
        "big dog/again": "link to a folder",
        "linked class": "link to a folder",
        "big dog/pipe.png": "not a regular file",
        "stray.png": "not in a class folder",
        "big dog/notes.txt": "not an image",
        "big dog/\\xff\\xfe.png": "not UTF-8",
    }
    found.ignored |= {
        ".hidden.png": "hidden",
        "big dog/.DS_Store": "hidden",
        "big dog/.thumbnails": "hidden",
        "big dog/Thumbs.db": "operating system",
        "big dog/desktop.ini": "operating system",
        "nothing in it": "without a file",
    }


def odd_formats(root: Path, *, each: int = 14) -> Outcome:
    """Three classes in predefined train and dev folders, without test: every mode and format, upright or not."""
    found = Outcome()
    for kind, label in enumerate(("circle", "square", "triangle")):
        for number in range(each + 4):
            name = f"{'Train' if number < each else 'dev'}/{label}/{number:02d}.jpg"
            save(picture(kind, number), root / name, quality=90)
            found.used[name] = label
    for number, (name, image, options) in enumerate(_formats()):
        save(image, root / "Train" / "circle" / name, **options)
        found.used[f"Train/circle/{name}"] = "circle"
        assert number < 50
    # The same photograph, and nearly the same, in another part: predefined parts are kept all the same.
    twin = root / "dev" / "square" / "twin.jpg"
    twin.write_bytes((root / "Train" / "square" / "00.jpg").read_bytes())
    save(picture(1, 1), root / "dev" / "square" / "near.jpg", quality=80)
    found.used |= {"dev/square/twin.jpg": "square", "dev/square/near.jpg": "square"}
    (root / "dev" / "readme.md").write_text("# notes", encoding="utf-8")
    found.dropped["dev/readme.md"] = "not in a class folder"
    floats = Image.fromarray(np.random.default_rng(0).random((20, 20), dtype=np.float32))
    save(floats, root / "Train" / "square" / "float.tiff")
    found.dropped["Train/square/float.tiff"] = "mode F"
    return found


def _formats() -> list[tuple[str, Image.Image, dict]]:
    drawn = [picture(0, 300 + number) for number in range(12)]
    turned = drawn[7].getexif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(drawn[4].convert("L")).astype(np.uint16) * 257)
    return [
        ("palette.png", drawn[0].quantize(32), {}),
        ("alpha.png", drawn[1].convert("RGBA"), {}),
        ("cmyk.jpg", drawn[2].convert("CMYK"), {}),
        ("grey.png", drawn[3].convert("L"), {}),
        ("sixteen.png", sixteen, {}),
        ("one bit.png", drawn[5].convert("1"), {}),
        ("animated.gif", drawn[6], {"save_all": True, "append_images": drawn[10:]}),
        ("turned.JPG", drawn[7], {"exif": turned, "format": "JPEG"}),
        ("PICTURE.WEBP", drawn[8], {"format": "WEBP"}),
        ("pages.TIFF", drawn[9], {"save_all": True, "append_images": drawn[10:], "format": "TIFF"}),
    ]


def odd_contents(root: Path, *, patients: int = 14) -> Outcome:
    """Two classes of patients' pictures with a table of groups: broken files, bombs, duplicates, dark pictures."""
    found = Outcome()
    rows = ["path,patient,note"]
    for patient in range(patients):
        kind, label = patient % 2, ("healthy", "ill")[patient % 2]
        for number in range(3):
            name = f"{label}/p{patient:02d}_{number}.png"
            save(picture(kind, 10 * patient + number), root / name)
            found.used[name] = label
            rows.append(f"{name},patient {patient},")
    # One patient has been ill and got well, so the two classes share a group.
    for label, kind in (("ill", 1), ("healthy", 0)):
        save(picture(kind, 500), root / label / "both.png")
        found.used[f"{label}/both.png"] = label
        rows.append(f"{label}/both.png,patient of both,")
    near = np.asarray(picture(0, 0)).astype(int)
    save(Image.fromarray(np.clip(near + 2, 0, 255).astype(np.uint8)), root / "healthy" / "lighter.png")
    (root / "ill" / "copy.png").write_bytes((root / "ill" / "p01_0.png").read_bytes())
    save(Image.new("RGB", (72, 64), (3, 3, 3)), root / "ill" / "black.png")
    save(picture(1, 600, size=(400, 60)), root / "ill" / "panorama.png")
    for name in ("healthy/lighter.png", "ill/copy.png", "ill/black.png", "ill/panorama.png"):
        found.used[name] = name.partition("/")[0]
        rows.append(f"{name},,on its own")
    _add_broken(root, found)
    rows += [f"{name}," + "," for name in found.dropped]
    (root / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return found


def _add_broken(root: Path, found: Outcome) -> None:
    whole = (root / "ill" / "p01_1.png").read_bytes()
    jpeg = save(picture(1, 700), root / "ill" / "cut.jpg").read_bytes()
    (root / "ill" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "ill" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "ill" / "empty.png").write_bytes(b"")
    (root / "healthy" / "text.jpg").write_text("no image", encoding="utf-8")
    save(Image.new("1", (10000, 9500)), root / "healthy" / "large.png")
    save(Image.new("1", (20000, 9500)), root / "healthy" / "bomb.png")
    same = save(picture(0, 800), root / "healthy" / "disputed.png").read_bytes()
    (root / "ill" / "disputed.png").write_bytes(same)
    found.dropped |= {
        "ill/cut.jpg": "cannot be read whole",
        "ill/cut.png": "cannot be read whole",
        "ill/empty.png": "not an image",
        "healthy/text.jpg": "not an image",
        "healthy/large.png": "more than 89,478,485 pixels",
        "healthy/bomb.png": "more than 89,478,485 pixels",
        "healthy/disputed.png": "labelled healthy, ill",
        "ill/disputed.png": "labelled healthy, ill",
    }

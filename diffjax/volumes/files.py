"""The one reader of volumes: a NIfTI file to numbers, place and scale, and the way back. By nibabel (``diffjax[medical]``).

A file is data, and of strangers: its header is read first, the work is bounded by what the file can hold, and whatever is
wrong becomes one line. What a header says of a patient, and its extensions, are not copied into what is written.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..wording import printable

LARGEST = 300_000_000  # numbers: more than a whole body at 1 mm; 1.2 GB as float32
INFLATES = 1032  # what a gzip file can be larger unpacked
MAGIC = {b"n+1\0": (344, "NIfTI"), b"ni1\0": (344, "half of a pair: give one .nii file, of both halves"),
         b"n+2\0": (4, "NIfTI"), b"ni2\0": (4, "half of a pair: give one .nii file, of both halves")}  # fmt: skip
HINTS = {
    b"\x89PNG": "is a PNG picture: give a NIfTI volume, or use diffjax restore",
    b"\xff\xd8\xff": "is a JPEG picture: give a NIfTI volume, or use diffjax restore",
    b"PK": "is a zip archive: unpack it",
    b"\x93NUMPY": "is a numpy array, which knows no place or spacing: write it as NIfTI",
    b"version https://git-lfs": "is a pointer of git-lfs: git lfs pull fetches the volume",
    b"NRRD": "is NRRD: convert it to NIfTI, for example with 3D Slicer",
    b"\0\0\0\1": "may be MGH: convert it with mri_convert to .nii.gz",
    b"<": "is HTML or XML text: download the volume itself",
}


@dataclass(frozen=True)
class Volume:
    """data: float32 (X, Y, Z) in the file's intensities (slope and intercept applied), NaN where it has none
    affine: (4, 4) float64, voxel index -> mm; spacing: (3,) mm between voxels; notes: a sentence for each thing to know
    header: nibabel's, for what is written beside the numbers
    """

    data: np.ndarray
    affine: np.ndarray
    spacing: tuple
    notes: list = field(default_factory=list)
    header: Any = None

    @property
    def slice_axis(self) -> int:
        """The axis with the largest spacing; the last of equals."""
        return max(range(3), key=lambda a: (round(self.spacing[a], 4), a))

    @property
    def orientation(self) -> str:
        """Where the axes point: RAS is right, anterior, superior."""
        return "".join(_nibabel().aff2axcodes(self.affine))


def _nibabel():
    try:
        import nibabel
    except ModuleNotFoundError as error:
        if error.name != "nibabel":
            raise
        raise ValueError("volumes need nibabel, which is not installed: pip install 'diffjax[medical]'") from None
    return nibabel


def _open(path, name):
    """(file of the unpacked bytes, bytes that it can have at most)"""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: give a NIfTI file, .nii or .nii.gz") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({printable(error, 80)})") from None
    if not stat.S_ISREG(found.st_mode):
        folder = "a folder: give one file" if stat.S_ISDIR(found.st_mode) else "no regular file: give a NIfTI file"
        raise ValueError(f"{name} is {folder}")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return (gzip.open(path, "rb") if packed else open(path, "rb")), found.st_size * (INFLATES if packed else 1)


def read(path: str | os.PathLike, frame: int | None = None) -> Volume:
    """The volume in a NIfTI-1 or NIfTI-2 file, .nii or .nii.gz.

    frame: which volume of a file with several (4-D), from 0; the file must have one, or be asked for one
    Raises ValueError, in one line, for a file that is missing, none of these formats, damaged or cut off, too large, of
    colours or complex numbers, of another number of axes, without a finite number, or with an affine that gives no place.
    """
    path = Path(path)
    name = f"volume {printable(path)}"
    nibabel = _nibabel()
    try:
        file, most = _open(path, name)
        with file:
            head = file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} cannot be read ({printable(error, 80)}): the file is damaged or cut off") from None
    kind = next((what for magic, (at, what) in MAGIC.items() if head[at : at + 4] == magic), None)
    if kind is None:
        raise ValueError(f"{name} {_foreign(head)}")
    if kind != "NIfTI":
        raise ValueError(f"{name} is {kind}")
    image_class = nibabel.Nifti2Image if head[4:7] == b"n+2" else nibabel.Nifti1Image
    quiet = nibabel.imageglobals.LoggingOutputSuppressor  # what it mends in a header, it would say on the error stream
    try:
        with quiet():
            image = image_class.from_bytes(_unpacked(path, most, name, image_class, head))
        shape, dtype = image.shape, image.get_data_dtype()
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # nibabel has kinds of its own, and so has whatever it is given
        raise ValueError(f"{name} cannot be read ({printable(error, 120)}): the file is damaged") from None
    if dtype.fields or dtype.kind == "c":
        raise ValueError(f"{name} holds {'colours' if dtype.fields else 'complex numbers'}: give one number for each voxel")
    notes = []
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        notes.append(f"it has {len(shape)} axes and is taken as one slice")
        shape = (*shape, *(1,) * (3 - len(shape)))
    if frame and len(shape) <= 3:
        raise ValueError(f"{name} holds one volume, there is no frame {frame}: leave it out")
    try:
        with quiet(), np.errstate(over="ignore", invalid="ignore"):
            data = image.dataobj if len(shape) <= 3 else image.dataobj[_frame(frame, shape, name, notes)]
            data = np.asarray(data, np.float32).reshape(shape[:3])
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} cannot be read ({printable(error, 120)}): the file is damaged or cut off") from None
    except Exception as error:  # EOFError, OSError, zlib.error, MemoryError ...
        raise ValueError(f"{name} cannot be read ({printable(error, 120)}): the file is damaged or cut off") from None
    data = _finite(data, name, notes)
    affine = np.asarray(image.affine, np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (sizes > 0).all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        raise ValueError(f"{name} has an affine that gives voxels no place: set its sform or qform, or both codes to 0")
    return Volume(data, affine, tuple(float(s) for s in sizes), notes, image.header)


class _Refused(Exception):
    pass


def _unpacked(path, most, name, image_class, head) -> bytes:
    """All bytes of the image, no more than its header wants, which is checked first."""
    header = image_class.header_class.from_fileobj(io.BytesIO(head), check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    if not shape or len(shape) > 7 or any(n < 1 for n in shape):
        raise _Refused(f"{name} has the shape {shape}: the file is damaged")
    count = math.prod(shape)
    if count > LARGEST:
        raise _Refused(f"{name} says it has {count:,} voxels: {LARGEST:,} are the most, crop it or take one volume of it")
    offset = int(header.get_data_offset())
    wanted = offset + count * header.get_data_dtype().itemsize
    if not 348 <= offset <= 2**24 or wanted > most:
        raise _Refused(f"{name} is cut off: its header wants {wanted:,} bytes")
    file, _ = _open(path, name)
    with file:
        found = file.read(wanted)
    if len(found) < wanted:
        raise _Refused(f"{name} is cut off: it has {len(found):,} bytes, its header wants {wanted:,}")
    return found


def _foreign(head) -> str:
    if not head:
        return "is empty: give a NIfTI file, .nii or .nii.gz"
    if head[128:132] == b"DICM":
        return "is DICOM: convert the series with dcm2niix, and give its .nii.gz"
    hint = next((text for start, text in HINTS.items() if head.startswith(start)), None)
    return hint or "is no NIfTI volume: give a .nii or .nii.gz file"


def _frame(frame, shape, name, notes):
    count = math.prod(shape[3:])
    if frame is None:
        raise ValueError(f"{name} holds {count} volumes of {'x'.join(map(str, shape[:3]))}: choose frame 0 to {count - 1}")
    if not 0 <= frame < count:
        raise ValueError(f"{name} has no frame {frame}: choose 0 to {count - 1}")
    notes.append(f"frame {frame} of {count} is taken")
    return (..., *np.unravel_index(frame, shape[3:]))


def _finite(data, name, notes):
    """Infinities become NaN, which stands for no measurement; one line where there is nothing else."""
    missing = ~np.isfinite(data)
    if missing.all():
        raise ValueError(f"{name} has no finite number in it")
    if missing.any():
        notes.append(f"{int(missing.sum()):,} voxels are not finite: they stay NaN, and count as the darkest for the network")
        data = np.where(missing, np.float32(np.nan), data)
    return np.ascontiguousarray(data)


def finer(affine, axes, factor) -> np.ndarray:
    """The affine of a volume ``factor`` times finer along ``axes``, each voxel divided into equal parts: the volume lies where
    it lay, its first voxel's centre moves by half of what its size loses."""
    step = np.eye(4)
    for axis in axes:
        step[axis, axis] = 1 / factor
        step[axis, 3] = (1 / factor - 1) / 2
    return np.asarray(affine, np.float64) @ step


def write(path: str | os.PathLike, data, source: Volume, axes=(), factor: int = 1) -> None:
    """``data`` (X, Y, Z) as float32 NIfTI at the place of ``source``, ``factor`` times finer along ``axes`` (below 1 coarser).

    The affine is that of the finer grid; sform and qform keep their codes, so that each viewer finds it where the source was.
    Numbers are written as they are: no scaling, no rounding.
    """
    nibabel = _nibabel()
    old = source.header
    image_class = nibabel.Nifti2Image if type(old).__name__.startswith("Nifti2") else nibabel.Nifti1Image
    image = image_class(np.asarray(data, np.float32), finer(source.affine, axes, factor))
    if old is not None:
        header = image.header
        header.set_xyzt_units(*old.get_xyzt_units())
        forms = {"qform": old.get_qform(coded=True), "sform": old.get_sform(coded=True)}
        if not any(code for _, code in forms.values()):  # no place is given: only the spacing, and viewers centre it
            header.set_zooms([float(s) / (factor if a in axes else 1) for a, s in enumerate(source.spacing)])
        for name, (form, code) in forms.items():
            getattr(image, f"set_{name}")(finer(form, axes, factor) if code else None, int(code))
    image.to_filename(str(path))

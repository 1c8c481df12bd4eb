"""The user's own cache: models built here, self-checks that held, what judges said. It is believed, so nobody else writes there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from abliterate.errors import InputError

VARIABLE = "ABLITERATE_CACHE"
OWN_FOLDER, OWN_FILE = 0o700, 0o600  # nobody else reads or writes it
_ROOT = 0


def cache_folder() -> Path:
    """$ABLITERATE_CACHE, or the platform's user cache: a folder that nobody but the user writes or reads.

    It is made where it isn't there, and closed to others where it is the user's and open; one of root's will do where only root writes
    to it. Raises InputError for a link, another user's folder, one that many share, or one that can't be made.
    """
    path = Path(os.environ.get(VARIABLE) or platformdirs.user_cache_path("abliterate"))
    if path.is_symlink():
        raise InputError(f"{path}: the cache is a link, which may come to lead elsewhere; set {VARIABLE} to the folder itself")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=OWN_FOLDER, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: can't be made ({error.strerror or error}); set {VARIABLE} to a folder that can be written") from None
    own, mode = found.st_uid == os.geteuid(), stat.S_IMODE(found.st_mode)
    if not own and found.st_uid != _ROOT:
        raise InputError(f"{path}: the cache belongs to another user, who could change what is in it; set {VARIABLE} to a folder of yours")
    if mode & stat.S_ISVTX or (not own and mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise InputError(f"{path}: many users may write there, so it is no place for a cache; set {VARIABLE} to a folder of yours")
    if own and mode != OWN_FOLDER:
        path.chmod(OWN_FOLDER)
    return path

"""The Hugging Face Hub, only through huggingface_hub: its token, its endpoint, its resumable uploads."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]

from abliterate import __version__
from abliterate.errors import CheckError, InputError, first_line

_NO_TOKEN = "no token for the Hub: run `hf auth login`, or set HF_TOKEN (a token with write access)"
_SAID = {
    400: "the Hub rejects the request",
    401: "the Hub doesn't accept the token: run `hf auth login` again, or set HF_TOKEN to one that is valid",
    403: "the token has no write access to this repository",
    404: "there is no such user or organisation, or the token may not see it",
    409: "something else changed the repository meanwhile; run the same command again",
    413: "the upload is too large for the Hub",
    429: "the Hub asks to wait; run the same command again later",
}


def check_repo(repo: str) -> str:
    """The repository's name without its owner. Raises InputError if it is not ``owner/name``."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not a valid repository name: {first_line(error)}") from None
    owner, _, name = repo.partition("/")
    if not name:
        raise InputError(f"{repo!r}: give the repository with its owner, as in {owner}/{owner}-abliterated")
    return name


def check_token() -> None:
    """Raise InputError if huggingface_hub finds no token."""
    if get_token() is None:
        raise InputError(_NO_TOKEN)


def will_be_public(repo: str, public: bool) -> bool:
    """Whether the published repository is public: as asked if it is new, else as it is now; a push never changes that.

    Raises InputError (one line) for errors of the Hub or the network, CheckError if the repository is public and shouldn't be.
    """
    api = _api()
    with _in_a_line(repo, api.endpoint):
        try:
            there = api.model_info(repo).private is False
        except RepositoryNotFoundError:  # also raised for an invalid token; creating the repository then fails
            return public
    if there and not public:
        raise CheckError(f"{repo}: already exists and is public, but --public was not given; give it, or make the repository private")
    return there


def upload(folder: Path, names: Sequence[str], repo: str, public: bool) -> str:
    """Upload files of a folder to the repository; a new one is created, private unless ``public``. Returns the commit's URL.

    Files that an interrupted upload already sent are not sent again. Raises InputError (one line) for errors of the Hub or the network.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = _api()
    with _in_a_line(repo, api.endpoint):
        api.create_repo(repo, private=not public, repo_type="model", exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message=f"Edited with abliterate {__version__}",
        )
    return str(done.commit_url)


def _api() -> HfApi:
    return HfApi(library_name="abliterate", library_version=__version__)


@contextmanager
def _in_a_line(repo: str, endpoint: str) -> Iterator[None]:
    """Turn any error of the Hub into an InputError of one line."""
    try:
        yield
    except Exception as error:  # the Hub's client, its HTTP library and the upload's threads each raise their own kinds
        raise InputError(f"{repo}: {_reason(error, endpoint)}") from None


def _reason(error: BaseException, endpoint: str) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return _NO_TOKEN
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(inner)
    answered = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    if answered is None:
        why = f"{type(chain[-1]).__name__}: {first_line(chain[-1])}"
        return f"{endpoint} can't be reached or broke off ({why}); run the same command again to resume"
    status = answered.response.status_code
    said = _SAID.get(status, "the Hub has an error; run the same command again to resume" if status >= 500 else "the Hub refuses")
    detail = answered.server_message or ""
    return f"{said} (HTTP {status}{': ' + ' '.join(detail.split())[:200] if detail else ''})"

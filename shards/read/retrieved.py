"""`data.retrieved`: the pages that a retrieval run found for each question, the best first."""

from pathlib import Path

import msgspec

from shards.errors import ConfigError

_KEY = "data.retrieved"


def read_retrieved(path: str, pages: int) -> dict[str, tuple[str, ...]]:
    """By question id the names of its best pages, at most `pages`.

    Raises:
        ConfigError: the file cannot be read, or is no JSON object of lists of names.
    """
    file = Path(path).expanduser()
    try:
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, tuple[str, ...]])
    except OSError as error:
        raise ConfigError(
            f"{_KEY}: {file}: cannot be read: {error.strerror}; `duoflow evaluate` of a run of task "
            "mpdocvqa_retrieval writes it as predictions/SPLIT.json"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_KEY}: {file}: {error}; expected the names of pages by question id") from None
    empty = next((name for name, names in found.items() if not names), None)
    if empty is not None:
        raise ConfigError(f"{_KEY}: {file}: question {empty} has no page; expected at least one for each question")
    return {name: names[:pages] for name, names in found.items()}

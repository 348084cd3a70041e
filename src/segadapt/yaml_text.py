"""YAML that a person wrote, as plain values.

In: text. Out: dictionaries, lists, text and numbers. What PyYAML lets pass and nobody means is refused: a key that
stands twice (the first would be lost without a word), nesting or aliases without end.
"""

from typing import Any

import yaml

from segadapt.errors import InputError

_DEEPEST = 50
_MOST_VALUES = 100_000  # of a configuration or a label space; a few aliases of aliases can stand for billions


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            written = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if written in seen and key.tag != "tag:yaml.org,2002:merge":
                raise InputError(f"key '{key.value}' stands twice (line {key.start_mark.line + 1}); remove one")
            seen.add(written)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The value that YAML stands for.

    Raises:
        InputError: It is no YAML, or YAML of a kind that no file of ours needs. The message does not name the file.
    """
    try:
        content = yaml.load(text, _Loader)  # a safe loader
        _refuse_endless(content)
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}; correct it") from error
    except RecursionError:
        raise InputError(f"not valid YAML: nested more than {_DEEPEST} deep; correct it") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML's own constructors, of what looks like a date or a number and is none
        raise InputError(f"not valid YAML: {error}; put such text in quotes") from error
    return content


def _refuse_endless(content: Any) -> None:
    values, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if depth > _DEEPEST or values > _MOST_VALUES:
            raise InputError(
                f"not valid YAML: nested more than {_DEEPEST} deep, or more than {_MOST_VALUES} values with its "
                "aliases; correct it"
            )
        if isinstance(value, dict):
            waiting += [(key, depth + 1) for key in value]
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += [(item, depth + 1) for item in value]

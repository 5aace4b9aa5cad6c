"""Errors of the page's handlers, which are shown on the page as one sentence."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from xraygpt.common.errors import InputError
from xraygpt.demo.controller import is_out_of_memory
from xraygpt.demo.sessions import PREFIX

log = logging.getLogger(__name__)

_PRIVATE_PATH = re.compile(rf"\S*{re.escape(PREFIX)}[^\s:]*")


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler so that its errors are shown on the page as a message."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _page_error(error) from None

    @functools.wraps(handler)
    def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except Exception as error:
            raise _page_error(error) from None

    return streamed if inspect.isgeneratorfunction(handler) else wrapped


def _page_error(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        message = _PRIVATE_PATH.sub("the image", str(error))
    elif is_out_of_memory(error):
        message = "The device is out of memory: close other pages, or start with --low-resource."
    else:
        where = traceback.extract_tb(error.__traceback__)[-1]
        # Log only the type and place, because the message may quote a report.
        log.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
        message = f"Internal error ({type(error).__name__}). You can continue."
    return gr.Error(html.escape(message), duration=None, print_exception=False)

"""x"""
from typing import Literal
Length = Literal["sentence", "paragraph", "page"]
def summarize(*a): ...

"""The two usual corpora of word-level language models, in the layouts in which they are passed around.

Neither is downloaded: put the files into the data folder by hand.
"""

from __future__ import annotations

from lib.data.dataset import DataSet
from lib.data.packages import OwnFile
from lib.data.text import SPLITS, read_words

PENN_TREEBANK = DataSet(
    name="Penn Treebank (Mikolov's version: 10,000 words)",
    licence="Linguistic Data Consortium: members and licensees only, no redistribution",
    citation="Marcus et al., Computational Linguistics 19(2), 1993; Mikolov et al., Interspeech 2010",
    homepage="https://catalog.ldc.upenn.edu/LDC99T42",
    sources=tuple(
        OwnFile(f"ptb/ptb.{name}.txt", f"ptb.{name}.txt (Penn Treebank, Linguistic Data Consortium's terms)")
        for name in SPLITS
    ),
    read=read_words,
)

WIKITEXT_2 = DataSet(
    name="WikiText-2",
    licence="CC BY-SA (articles of Wikipedia)",
    citation="Merity et al., Pointer Sentinel Mixture Models, ICLR 2017, arXiv:1609.07843",
    homepage="https://huggingface.co/datasets/Salesforce/wikitext",
    sources=tuple(
        OwnFile(f"wikitext-2/wiki.{name}.tokens", f"wiki.{name}.tokens (WikiText-2, CC BY-SA)")
        for name in SPLITS
    ),
    read=read_words,
)

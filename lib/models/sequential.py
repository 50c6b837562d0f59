"""The four baselines of MEANTIME's main table; each module says its source and where it deviates."""

from lib.models.bert4rec import BERT4Rec
from lib.models.marank import MARank
from lib.models.sasrec import SASRec, TiSASRec

__all__ = ["BERT4Rec", "MARank", "SASRec", "TiSASRec"]

"""stagealign: which data does a policy need next, off-policy or on-policy?"""

__version__ = "0.1.0"

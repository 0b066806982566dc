"""Published tests of language models, as tasks of a comparison: perplexity of well-known texts, and LAMBADA.

Texts are the user's, or lie in a cache of data sets; nothing is downloaded.
"""

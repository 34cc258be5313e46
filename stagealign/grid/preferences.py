"""What is asked for: an oracle that labels and a gold reward that evaluates."""

from stagealign.grid.spec import Preference

PREFERENCES = {
    "pan": Preference(
        "pan", "a harsher verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=-1
    ),
    "praise": Preference(
        "praise", "a warmer verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=1
    ),
    "helpful": Preference(
        "helpful", "a better answer, as PairRM sees it", oracle="pairrm", gold="alpaca_eval", judge="dataset", sign=1
    ),
    "letters": Preference(
        "letters", "plumbing only: more letters", oracle="letters", gold="vowels", judge="dataset", sign=1
    ),
}

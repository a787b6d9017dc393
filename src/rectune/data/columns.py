"""Names of columns and splits, in one place."""

# interactions and events
USER_ID = "user_id"
ITEM_ID = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
LABEL = "label"
SPLIT = "split"
POSITION = "position"
"""0-based place of an event in its user's timeline."""
HISTORY_END = "history_end"
"""How many of the user's events are strictly earlier: the position of the first event of this moment."""
ROW_ID = "row_id"
"""0-based number of an event in the order of the source file; those of sampled negatives go on after its last."""
DRAWN_FOR = "drawn_for"
"""Position of the purchase that a sampled negative was drawn for; null for what the data holds."""

# catalog
TITLE = "title"
GENRES = "genres"
YEAR = "year"

# rejects
FILE = "file"
LINE = "line"
REASON = "reason"
TEXT = "text"

# splits
WARMUP = "warmup"
TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (WARMUP, TRAIN, VALIDATION, TEST)

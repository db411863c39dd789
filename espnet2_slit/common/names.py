"""Words that data, options, scores and commands share."""

STAGES = ("representation", "generative", "instruction")  # of training, --model
# What a sample trains (utt2task), and what an evaluation set asks for (set.json).
SAMPLE_TASKS = ("caption", "question_answering", "classification")
TASKS = ("caption", "retrieval", "question_answering", "classification", "moments")
ROUTES = ("similarity", "matching", "language_model")  # ways to score labels

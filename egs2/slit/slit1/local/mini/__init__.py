"""The mini corpus: sound scenes with true captions, questions and labels."""

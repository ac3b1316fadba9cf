"""What a person reads: tables as text, figures, a page, lines on a terminal."""

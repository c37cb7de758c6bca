"""Pictures on request: what is asked for, drawn, told of, and drawn again."""

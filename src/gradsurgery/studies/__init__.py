"""Studies of networks, trained for them or finished: similarity, conflict, answers, tasks."""

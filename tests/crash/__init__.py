"""The crash test: a real broker under load is killed, loses power and gets disk errors; a checker verifies its
guarantees.
"""

"""What a person wants to know before a run: are pictures, words, memory and time in order?"""

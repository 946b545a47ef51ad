"""What a storyboard needs besides its model (:mod:`facelock.storyboard`): reading, checks, rendering, the edit.

| module | what |
| --- | --- |
| ``reading``, ``fountain``, ``writing`` | YAML, JSON, CSV and Fountain to plain values with line numbers, and back |
| ``checks``, ``plan`` | all mistakes at once; what each shot asks for, and what it costs |
| ``render``, ``takes``, ``events``, ``film`` | shots made one after the other, each with its own journal |
| ``edit``, ``soundtrack``, ``timeline``, ``sheet``, ``summary`` | the edit, timelines, report |
"""

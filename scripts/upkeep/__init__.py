"""What keeps machine and project in order.

`doctor`: has this machine what the toolkit needs?
`clean`: remove what the toolkit made
`lint`: check the own files
"""

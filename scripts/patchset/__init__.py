"""The patch series: from templates to patches, onto the trees and back.

`series`: render it, check it, apply it, take it back
`hunks`: the hunks of a patch
`index`: patches applied apart from the trees
`template`: patches as templates, filled in and put back
`branch`: the series as a branch: commits to edit, and back to patch files
`proof`: do the patches make the commits again?
`trials`: does it apply to every release?
`bump`: move to newer releases
"""

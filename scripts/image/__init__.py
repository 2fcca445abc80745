"""The images: made from a context, labelled, listed, compared.

`base`: the base image
`variables`: what the image takes from its environment, and the shell that checks it
`build`: the images stock, patched and sipp, and the context they are made from
`cache`: finished stages in a registry
`provenance`: where an image comes from, in its labels
`sbom`: what is in it, as CycloneDX
`info`: labels and list of contents, printed
`diff`: two images, file by file
`stages/`: shell that Dockerfile.build runs
`runtime/`: shell inside the image
"""

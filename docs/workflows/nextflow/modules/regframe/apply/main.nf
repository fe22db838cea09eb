process REGFRAME_APPLY {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${params.regframe_container ?: 'regframe:0.1.0'}"

    input:
    tuple val(meta), path(result), path(input, stageAs: 'input/*')
    val(kind)
    val(to)

    output:
    tuple val(meta), path("${prefix}.*"), emit: applied
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    if (!(kind in ['image', 'labels', 'points', 'shapes'])) {
        error "wanted the kind image, labels, points or shapes, got ${kind}"
    }
    def args = task.ext.args ?: ''
    def command = kind == 'labels' ? 'image' : kind
    def ids = kind == 'labels' ? '--labels' : ''
    def suffix = task.ext.suffix ?: (command == 'image' ? 'ome.tif' : input.extension)
    prefix = task.ext.prefix ?: "${meta.id}_${to}"
    """
    export OMP_NUM_THREADS=${task.cpus} MPLCONFIGDIR=\$PWD/.matplotlib

    regframe apply ${command} ${result} ${input} -o ${prefix}.${suffix} --to ${to} ${ids} ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """

    stub:
    def suffix = task.ext.suffix ?: (kind in ['image', 'labels'] ? 'ome.tif' : input.extension)
    prefix = task.ext.prefix ?: "${meta.id}_${to}"
    """
    touch ${prefix}.${suffix}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """
}
